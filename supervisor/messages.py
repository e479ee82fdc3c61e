"""Words of the control socket: every child, and the command line, talk to the supervisor here.

A socket's messages live with the process that binds it, both directions, so that the imports keep
pointing one way. Messages are frozen, tagged by a small integer, encoded as MessagePack arrays:
append fields with defaults, never reorder, never reuse a tag.

This module is a leaf: it imports nothing of ours.
"""

from __future__ import annotations

import enum
from typing import ClassVar

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of everything that crosses a socket."""

    #: It has a ``body: bytes`` of any size, which the wire counts when it forms batches.
    bulky: ClassVar[bool] = False


class ChildState(enum.StrEnum):
    """A child's life (``supervisor/lifecycle.py`` holds the transitions)."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    FAILED = "failed"


# --------------------------------------------------------------------- child → supervisor


class Beat(Message, frozen=True, tag=1):
    """One heartbeat, sent by the child's event loop every second and when readiness changes."""

    pid: int
    #: The child can do its work (ingress: port open; the others: socket bound).
    ready: bool
    #: What it is waiting for when not ready, for people.
    detail: str = ""
    #: Small numbers and texts for ``status``: queue depth, load, last report. At most 64 entries.
    gauges: dict[str, float | int | str | bool] = {}


class ModelVerdict(Message, frozen=True, tag=2):
    """The adapter's judgement of the model server, sent when it changes.

    ``healthy``: probe (or log line) says that it answers. ``ready``: and it is benchmarked.
    ``wedged``: it neither answers its probe nor makes progress; the supervisor restarts it.
    ``generation`` names which start of the model server is judged; a verdict on an older one is
    void.
    """

    generation: int
    healthy: bool
    ready: bool
    wedged: bool = False
    reason: str = ""
    max_perf: float = 0.0  #: workload per second that was measured; 0: unknown


class CommandRequest(Message, frozen=True, tag=3):
    """What the command line asks of the running supervisor."""

    verb: str  #: status, restart, drain, reload, stop, logs
    args: list[str] = []


class Configured(Message, frozen=True, tag=4):
    """The worker.py has run its Worker. ``values``: MessagePack, section → name → value."""

    values: bytes
    pid: int = 0  #: of the process that says so


class ScriptFailed(Message, frozen=True, tag=5):
    """The worker.py cannot run, or does not come to running its Worker; ``text`` says where."""

    text: str
    pid: int = 0
    permanent: bool = False  #: running it again cannot help


class LifecycleState(Message, frozen=True, tag=6):
    """The lifecycle of the worker.py was entered, or (``error``) could not be."""

    error: str = ""
    pid: int = 0


ToSupervisor = Beat | ModelVerdict | CommandRequest | Configured | ScriptFailed | LifecycleState


# --------------------------------------------------------------------- supervisor → child


class ModelState(Message, frozen=True, tag=1):
    """Where the model server stands. Sent when it changes and after every (re)connect.

    ``state`` is a ChildState, or ``"external"`` when something else starts the model server.
    """

    state: str
    #: counts starts; 0: never started by us; that of the file whose lifecycle starts it
    generation: int = 0
    pid: int = 0
    reason: str = ""  #: why it is not running, for people ("killed by signal 9", "exit 3")
    started_at: float = 0.0  #: time.monotonic() of the spawn
    restarts: int = 0
    #: what an earlier life of the adapter measured on this machine; 0: nothing yet
    max_perf: float = 0.0


#: ``LogMatch.pattern`` of what the lifecycle of a worker.py has said.
LIFECYCLE = "lifecycle"


class LogMatch(Message, frozen=True, tag=2):
    """A line of the model server's log contained one of the configured patterns."""

    generation: int
    kind: str  #: "ready" or "error"
    pattern: str
    line: str  #: at most 512 characters, masked


class ChildNote(Message, frozen=True, tag=3):
    """Where one of our own children stands. The reporter tells the engine while it is wrong; of
    ``hooks`` ingress and adapter hear too, and refuse what needs it when it FAILED. All hear that
    ``worker`` is STOPPING.
    """

    name: str
    state: str
    reason: str
    restarts: int  #: after crashes
    generation: int = 0  #: counts starts, those that were asked for too


class Drain(Message, frozen=True, tag=4):
    """Finish what runs, start nothing new, then exit 0. After ``deadline_s`` give up and exit."""

    deadline_s: float


class Reload(Message, frozen=True, tag=5):
    """New settings lie at the path that the child was started with; certificates may be new."""


class CommandReply(Message, frozen=True, tag=6):
    """Answer to a CommandRequest; ``body`` is JSON text."""

    ok: bool
    body: str


class Unready(Message, frozen=True, tag=7):
    """What the worker waits for before it is ready, in the words of ``status``: for the reporter's
    pages, when it changes (at most once a beat). "": nothing.
    """

    reason: str


FromSupervisor = ModelState | LogMatch | ChildNote | Drain | Reload | CommandReply | Unready
