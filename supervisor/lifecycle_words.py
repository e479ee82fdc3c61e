"""Words of a child's life: the events that ``lifecycle.Life`` takes, the commands it returns.

A leaf: frozen data, times in seconds, reasons in the words of people.
"""

from __future__ import annotations

import enum

import msgspec

from supervisor.messages import ChildState

# ------------------------------------------------------------------------------- events


class Start(msgspec.Struct, frozen=True):
    """What it depends on is up: begin."""


class Spawned(msgspec.Struct, frozen=True):
    """The process lives."""

    pid: int


class SpawnFailed(msgspec.Struct, frozen=True):
    """There is no process. ``permanent``: trying again cannot help (command not found)."""

    reason: str
    permanent: bool = False


class BecameReady(msgspec.Struct, frozen=True):
    """It can do its work."""


class BecameUnhealthy(msgspec.Struct, frozen=True):
    """It was READY and does not do its work now."""

    reason: str


class Recovered(msgspec.Struct, frozen=True):
    """It was UNHEALTHY and is well again."""


class Hung(msgspec.Struct, frozen=True):
    """It lives but will not come back by itself: no heartbeat, or wedged. ``permanent``: nor would
    another one."""

    reason: str
    permanent: bool = False


class Exited(msgspec.Struct, frozen=True):
    """The process is gone and reaped. ``reason``: how, for people ("exit 3")."""

    reason: str


class Swept(msgspec.Struct, frozen=True):
    """No process of its old tree is left."""


class TimerFired(msgspec.Struct, frozen=True):
    """The backoff is over (``Timer.BACKOFF``)."""


class StartDeadline(msgspec.Struct, frozen=True):
    """It has had its time to become ready (``Timer.START``)."""


class StopDeadline(msgspec.Struct, frozen=True):
    """It has had its time to end (``Timer.STOP``)."""


class Stop(msgspec.Struct, frozen=True):
    """End it for good, by SIGKILL after ``deadline_s`` seconds. Said again: the new deadline."""

    deadline_s: float
    reason: str = "stop asked for"


class Restart(msgspec.Struct, frozen=True):
    """The user wants a new process now; earlier crashes are forgiven."""

    reason: str = "restart asked for"


Event = (
    Start
    | Spawned
    | SpawnFailed
    | BecameReady
    | BecameUnhealthy
    | Recovered
    | Hung
    | Exited
    | Swept
    | TimerFired
    | StartDeadline
    | StopDeadline
    | Stop
    | Restart
)

# ----------------------------------------------------------------------------- commands


class Timer(enum.StrEnum):
    """The timers of one child. Setting a kind again replaces it."""

    START = "start"  #: answered by StartDeadline
    STOP = "stop"  #: answered by StopDeadline
    BACKOFF = "backoff"  #: answered by TimerFired


class Spawn(msgspec.Struct, frozen=True):
    """Start a process; answer Spawned or SpawnFailed. ``generation`` counts Spawns from 1."""

    generation: int


class Terminate(msgspec.Struct, frozen=True):
    """Ask it to end: SIGTERM. It has ``deadline_s`` seconds."""

    deadline_s: float


class Kill(msgspec.Struct, frozen=True):
    """End the whole tree with SIGKILL."""

    reason: str


class Sweep(msgspec.Struct, frozen=True):
    """Kill whatever its tree left behind; answer Swept once nothing is left, however long."""


class SetTimer(msgspec.Struct, frozen=True):
    """Feed the answer of ``kind`` after ``delay_s`` seconds."""

    kind: Timer
    delay_s: float


class CancelTimer(msgspec.Struct, frozen=True):
    """Forget the timer of this kind; it may have fired already."""

    kind: Timer


class Announce(msgspec.Struct, frozen=True):
    """Tell the others. STARTING is told once its process lives, so a pid can go with it."""

    state: ChildState
    reason: str


class GiveUp(msgspec.Struct, frozen=True):
    """It FAILED; whoever runs the worker decides what that means."""

    reason: str


Command = Spawn | Terminate | Kill | Sweep | SetTimer | CancelTimer | Announce | GiveUp
