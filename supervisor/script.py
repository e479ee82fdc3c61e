"""What the supervisor does at the words of the process that holds a worker.py.

Law: that process says everything with each of its heartbeats, because a session may break at any
moment; here it is acted on once. What a process says that has ended since means nothing. Functions
on the supervisor, like those of ``commands.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor import lifecycle, tidings
from supervisor.messages import (
    LIFECYCLE,
    ChildState,
    Configured,
    LifecycleState,
    LogMatch,
    ScriptFailed,
)
from supervisor.process_scan import is_stopped
from supervisor.settings_sources import SettingsError

if TYPE_CHECKING:
    from supervisor.member import Member
    from supervisor.process import Supervisor

#: C code of a worker.py may hold Python's lock for this long, and all its threads with it.
HELD_S = 30.0
Word = Configured | ScriptFailed | LifecycleState


def patience_s(supervisor: Supervisor, member: Member) -> float:
    """Seconds that a process of ours may be mute. One that runs a worker.py has more: a library
    that it loads, above all. But one that was stopped does nothing, and holds nothing.
    """
    settings = supervisor.plan.settings
    usual_s = settings.restart.beat_s * settings.restart.missed_beats
    if member.name != "hooks" or member.process is None or is_stopped(member.process.pid):
        return usual_s
    starting = member.state is ChildState.STARTING
    return max(settings.hooks.start_timeout_s if starting else HELD_S, usual_s)


def heed(supervisor: Supervisor, word: Word) -> None:
    """Act on it, unless it was acted on."""
    member = supervisor.members["hooks"]
    if member.process is None or member.process.pid != word.pid:
        return
    if isinstance(word, ScriptFailed):
        member.feed(lifecycle.Hung(supervisor.mask(word.text), word.permanent))
    elif isinstance(word, Configured):
        try:
            supervisor.configure(word.values)
        except SettingsError as error:
            member.feed(lifecycle.Hung(supervisor.mask(str(error)), permanent=True))
    else:
        kind, text = "error" if word.error else "ready", supervisor.mask(word.error)[:512]
        match = LogMatch(tidings.model_generation(supervisor), kind, LIFECYCLE, text)
        if match != supervisor.ready_line:
            supervisor.note_ready_line(match)
