"""What the person who started the worker sees: a timeline until it is ready, then only changes.

``Timeline`` is told of every change of every member, in whatever order, and compares what it sees
with what it has said. It decides nothing and may miss nothing but repetitions; ``screen.py`` knows
how words are shown. While the model loads, its latest log line and what grows on the machine are
shown every ``PROGRESS_S``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from supervisor import awaited
from supervisor.growth import Growth
from supervisor.messages import ChildState
from supervisor.screen import Part, Screen, Tone

if TYPE_CHECKING:
    from supervisor.member import Member
    from supervisor.process import Supervisor

#: Seconds between two words on a model that takes long.
PROGRESS_S = 10.0
#: The machine is looked at when the start has lasted this long; most are over by then.
LOOK_S = 2.0
#: Characters of a log line that is shown as progress.
MAX_QUOTE = 100
#: Said of a member that is being restarted because somebody asked for it.
_RECYCLED = ("recycled", "")
_DOWN = (ChildState.BACKOFF, ChildState.FAILED, ChildState.UNHEALTHY)


class Timeline:
    """The words of one run.

    ``growth``: what moved on the machine since it was last asked, in words.
    """

    def __init__(self, screen: Screen, growth: Callable[[], str] | None = None) -> None:
        self._screen = screen
        self._growth = growth
        self._begun = False
        self._parts: list[Part] = []
        self._ticked: set[str] = set()
        #: members that are down, and since when (loop time)
        self._down: dict[str, float] = {}
        #: what was said of each of them last
        self._fell: dict[str, tuple[str, str]] = {}
        self._ready_once = False
        self._ready = False
        self._stopping = False
        self._progress: asyncio.TimerHandle | None = None
        self._quote = ""  # what was shown of the model's log last

    def __call__(self, supervisor: Supervisor, member: Member) -> None:
        """Something changed."""
        if not self._begun:
            self._begin(supervisor)
        if supervisor.stopping:
            self._say_stopping(supervisor)
            return
        self._tick_model(supervisor)
        self._member(supervisor, member)
        self._readiness(supervisor)

    def close(self) -> None:
        """The run is over: nothing more is said."""
        if self._progress is not None:
            self._progress.cancel()
        self._screen.finish()

    # ------------------------------------------------------------------ until ready

    def _begin(self, supervisor: Supervisor) -> None:
        self._begun = True
        plan = supervisor.plan
        local = " (local)" if plan.local_engine_port else ""
        gap = " " * 6
        self._screen.say(
            f" worker     {plan.worker_url}{gap}engine  {plan.engine_url}{local}"
            f"{gap}health  {plan.admin_url}"
        )
        if plan.embedded:
            self._screen.say(" no model is configured: the demo model answers", Tone.QUIET)
        self._progress = supervisor.loop.call_later(LOOK_S, self._look, supervisor)

    def _look(self, supervisor: Supervisor) -> None:
        wait_s = PROGRESS_S - LOOK_S
        self._progress = supervisor.loop.call_later(wait_s, self._say_progress, supervisor)
        if self._growth is None:
            self._growth = Growth().words

    def _tick(self, key: str, text: str) -> None:
        """One step of the start, once."""
        if key not in self._ticked and not self._ready_once:
            self._ticked.add(key)
            self._parts.append(Part(text, Tone.GOOD))
            self._screen.show(self._parts)

    def _tick_model(self, supervisor: Supervisor) -> None:
        verdict = supervisor.model_verdict
        if verdict is None:
            return
        since = _elapsed(supervisor)
        if verdict.healthy:
            self._tick("model", f"✓ model loaded {since}")
        if verdict.ready and verdict.max_perf > 0:
            plan = supervisor.plan.settings
            unit = "tok/s" if _counts_tokens(supervisor) else "work/s"
            how = "capacity" if plan.benchmark.max_perf else "benchmark"
            self._tick("benchmark", f"✓ {how} {verdict.max_perf:.0f} {unit}")

    def _say_progress(self, supervisor: Supervisor) -> None:
        self._progress = supervisor.loop.call_later(PROGRESS_S, self._say_progress, supervisor)
        said, line, grown = awaited.of_run(supervisor), awaited.last_line(supervisor), ""
        if self._growth is not None and not supervisor.model_ready:
            grown = self._growth()
            if line:
                quote = f"model: {line[:MAX_QUOTE]}"
                # a log that stands still does not say what is missing
                said = f"{quote}   ({said})" if quote == self._quote else quote
                self._quote = quote
        if grown:
            said = f"{said}   [{grown}]"
        self._screen.say(f" {_elapsed(supervisor):>7}  {supervisor.mask(said)}", Tone.QUIET)

    # ------------------------------------------------------------------ changes

    def _member(self, supervisor: Supervisor, member: Member) -> None:
        name, state = member.name, member.state
        if state is ChildState.READY:
            self._fell.pop(name, None)
            since = self._down.pop(name, None)
            if since is not None:
                took_s = supervisor.loop.time() - since
                self._screen.say(f" ✓ {name} is back after {took_s:.1f} s", Tone.GOOD)
                self._ticked.add(name)
            elif name not in ("model", "engine"):
                shown = name if "ingress-1" in supervisor.members else name.removesuffix("-0")
                self._tick(name, f"✓ {shown} {_elapsed(supervisor)}")
        elif state in _DOWN:
            self._down.setdefault(name, supervisor.loop.time())
            reason = supervisor.mask(member.life.reason or member.last_exit)
            fell = (str(state), reason)
            if self._fell.get(name) not in (fell, _RECYCLED):
                self._fell[name] = fell
                said = _last_words(supervisor) if name == "model" else ""
                self._screen.say(f" ✗ {name}: {reason}{said}{_outlook(state)}", Tone.BAD)
        elif state is ChildState.STOPPING and self._fell.get(name) != _RECYCLED:
            self._down.setdefault(name, supervisor.loop.time())
            self._fell[name] = _RECYCLED
            self._screen.say(f" ↻ {name}: {member.life.reason}")

    def _readiness(self, supervisor: Supervisor) -> None:
        ready = supervisor.ready
        if ready and not self._ready_once:
            self._ready_once = self._ready = True
            self._parts.append(Part(f"● ready in {_elapsed(supervisor)}", Tone.LOUD))
            self._screen.show(self._parts)
            self._screen.finish()
            self._say_next(supervisor)
            if self._progress is not None:
                self._progress.cancel()
        elif self._ready_once and supervisor.serving != self._ready:
            self._ready = supervisor.serving
            if self._ready:
                self._screen.say(" ● ready again", Tone.LOUD)
            else:
                verdict = supervisor.model_verdict
                reason = "" if supervisor.model_ready or verdict is None else verdict.reason
                if supervisor.model_ready and awaited.lacks_key(supervisor):
                    reason = "no public key from the engine"
                because = f": {supervisor.mask(reason)}" if reason else ""
                self._screen.say(f" ○ not ready{because}", Tone.BAD)

    def _say_next(self, supervisor: Supervisor) -> None:
        say = self._screen.say
        say("")
        if supervisor.plan.local_engine_port:
            say(f' ask it     {_typed("ask", supervisor)} "What is the answer to the universe?"')
        say(f" look       {_typed('status', supervisor)}        stop   Ctrl-C (drains)")
        say("")

    def _say_stopping(self, supervisor: Supervisor) -> None:
        if not self._stopping:
            self._stopping = True
            self.close()
            drain_s = supervisor.plan.settings.worker.drain_s
            self._screen.say(
                f" ■ stopping: {supervisor.stop_reason}; running requests have {drain_s:g} s"
                "; a second signal ends them at once"
            )


def _last_words(supervisor: Supervisor) -> str:
    """The model server's last line often says why it ended."""
    line = supervisor.mask(awaited.last_line(supervisor))
    return f" (its last line: {line[:MAX_QUOTE]})" if line else ""


def _typed(command: str, supervisor: Supervisor) -> str:
    """What a person types to have this very worker obey a command."""
    python = supervisor.plan.python
    state_dir = supervisor.plan.named_state_dir
    return f"{python} -m supervisor {command}" + (f" --state-dir {state_dir}" if state_dir else "")


def _elapsed(supervisor: Supervisor) -> str:
    return f"{supervisor.loop.time() - supervisor.started_at:.1f} s"


def _outlook(state: ChildState) -> str:
    if state is ChildState.BACKOFF:
        return "; starting it again"
    return "; giving up on it" if state is ChildState.FAILED else ""


def _counts_tokens(supervisor: Supervisor) -> bool:
    """The benchmark's unit of work is a token, as far as its name says."""
    settings = supervisor.plan.settings
    fields = [r.workload.field for r in settings.route if r.path == settings.benchmark.route]
    return any("token" in name for name in fields)
