"""Words of a child's life: the events that ``lifecycle.Life`` takes, the commands it returns.

A leaf: frozen data, times in seconds, reasons in the words of people.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from supervisor.messages import ChildState

# ------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Start:
    """What it depends on is up: begin."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process lives."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no process. ``permanent``: trying again cannot help (command not found)."""

    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class BecameReady:
    """It can do its work."""


@dataclass(frozen=True, slots=True)
class BecameUnhealthy:
    """It was READY and does not do its work now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """It was UNHEALTHY and is well again."""


@dataclass(frozen=True, slots=True)
class Hung:
    """It lives but will not come back by itself: no heartbeat, or wedged. ``permanent``: nor would
    another one."""

    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone and reaped. ``reason``: how, for people ("exit 3")."""

    reason: str


@dataclass(frozen=True, slots=True)
class Swept:
    """No process of its old tree is left."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The backoff is over (``Timer.BACKOFF``)."""


@dataclass(frozen=True, slots=True)
class StartDeadline:
    """It has had its time to become ready (``Timer.START``)."""


@dataclass(frozen=True, slots=True)
class StopDeadline:
    """It has had its time to end (``Timer.STOP``)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End it for good, by SIGKILL after ``deadline_s`` seconds. Said again: the new deadline."""

    deadline_s: float
    reason: str = "stop asked for"


@dataclass(frozen=True, slots=True)
class Restart:
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


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process; answer Spawned or SpawnFailed. ``generation`` counts Spawns from 1."""

    generation: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask it to end: SIGTERM. It has ``deadline_s`` seconds."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """End the whole tree with SIGKILL."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """Kill whatever its tree left behind; answer Swept once nothing is left, however long."""


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Feed the answer of ``kind`` after ``delay_s`` seconds."""

    kind: Timer
    delay_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer of this kind; it may have fired already."""

    kind: Timer


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the others. STARTING is told once its process lives, so a pid can go with it."""

    state: ChildState
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It FAILED; whoever runs the worker decides what that means."""

    reason: str


Command = Spawn | Terminate | Kill | Sweep | SetTimer | CancelTimer | Announce | GiveUp
