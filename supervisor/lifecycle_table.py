"""The transition table of a child's life: phase × event → phase, things to do.

Law: every phase names every event, be it to ignore it. ``lifecycle.py`` explains the laws that the
table serves and runs it; ``diagram()`` renders it for docs/.

Pure data: it knows no time and no budget, only where a step leads when the budget is spent.
"""

from __future__ import annotations

import enum
from typing import get_args

import msgspec

from supervisor.lifecycle_words import (
    BecameReady,
    BecameUnhealthy,
    Event,
    Exited,
    Hung,
    Recovered,
    Restart,
    Spawned,
    SpawnFailed,
    Start,
    StartDeadline,
    Stop,
    StopDeadline,
    Swept,
    Timer,
    TimerFired,
)
from supervisor.messages import ChildState


@enum.unique
class Phase(enum.Enum):
    """Where a life stands. The value is what others see, its timer while it lasts, and why."""

    IDLE = (ChildState.WAITING, None, "not started")
    SPAWNING = (ChildState.STARTING, None, "process asked for")
    LOADING = (ChildState.STARTING, Timer.START, "alive, not ready yet")
    READY = (ChildState.READY, None, "does its work")
    UNHEALTHY = (ChildState.UNHEALTHY, None, "alive, does not do its work")
    DOOMED = (ChildState.UNHEALTHY, None, "killed by us, exit not seen yet")
    CLEARING = (ChildState.BACKOFF, None, "dead, leftovers being swept")
    DELAYED = (ChildState.BACKOFF, Timer.BACKOFF, "waits before it is started again")
    RECYCLING = (ChildState.STOPPING, Timer.STOP, "ending, to be started again")
    ABORTING = (ChildState.STOPPING, None, "stopped while the process was asked for")
    ENDING = (ChildState.STOPPING, Timer.STOP, "ending for good")
    ENDED = (ChildState.STOPPING, None, "dead for good, leftovers being swept")
    STOPPED = (ChildState.STOPPED, None, "nothing is left of it")
    SPENT = (ChildState.FAILED, None, "given up, leftovers being swept")
    FAILED = (ChildState.FAILED, None, "given up")

    def __init__(self, state: ChildState, timer: Timer | None, meaning: str) -> None:
        self.state = state
        self.timer = timer
        self.meaning = meaning


class Do(enum.Enum):
    """What a step does besides changing the phase."""

    SPAWN = "Spawn"
    TERMINATE = "Terminate"
    KILL = "Kill"
    SWEEP = "Sweep"
    GIVE_UP = "GiveUp"


class Step(msgspec.Struct, frozen=True):
    """One cell of the table. ``spent``: the step taken instead when this crash ends the budget."""

    to: Phase
    do: tuple[Do, ...] = ()
    spent: Step | None = None


#: The cell of an event that changes nothing in this phase.
IGNORED = None

_CRASH = Step(Phase.CLEARING, (Do.SWEEP,), spent=Step(Phase.SPENT, (Do.GIVE_UP, Do.SWEEP)))
_CONDEMN = Step(Phase.DOOMED, (Do.KILL,))
_RECYCLE = Step(Phase.RECYCLING, (Do.TERMINATE,))
_END = Step(Phase.ENDING, (Do.TERMINATE,))
_SPAWN = Step(Phase.SPAWNING, (Do.SPAWN,))

_VERDICTS = (BecameReady, BecameUnhealthy, Recovered)
_JUDGEMENTS = (*_VERDICTS, Hung)
_ANSWERS = (Spawned, SpawnFailed, Exited, Swept)
_DEADLINES = (TimerFired, StartDeadline, StopDeadline)

Row = dict[type[Event], Step | None]


def _row(steps: Row, ignored: tuple[type[Event], ...]) -> Row:
    """One phase's cells; raises ValueError unless every event is named exactly once."""
    named = [*steps, *ignored]
    if len(named) != len(set(named)) or set(named) != set(get_args(Event)):
        raise ValueError(f"events named twice, or not at all: {named}")
    return {**steps, **dict.fromkeys(ignored, IGNORED)}


#: Every phase × every event.
TABLE: dict[Phase, Row] = {
    Phase.IDLE: _row(
        {
            Start: _SPAWN,
            Stop: Step(Phase.STOPPED),
        },
        (Restart, *_ANSWERS, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.SPAWNING: _row(
        {
            Spawned: Step(Phase.LOADING),
            SpawnFailed: Step(Phase.DELAYED, spent=Step(Phase.FAILED, (Do.GIVE_UP,))),
            Stop: Step(Phase.ABORTING),
            Restart: Step(Phase.SPAWNING),
        },
        (Start, Exited, Swept, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.LOADING: _row(
        {
            BecameReady: Step(Phase.READY),
            Hung: _CONDEMN,
            StartDeadline: _CONDEMN,
            Exited: _CRASH,
            Stop: _END,
            Restart: _RECYCLE,
        },
        (Start, Spawned, SpawnFailed, Swept, BecameUnhealthy, Recovered, TimerFired, StopDeadline),
    ),
    Phase.READY: _row(
        {
            BecameUnhealthy: Step(Phase.UNHEALTHY),
            Hung: _CONDEMN,
            Exited: _CRASH,
            Stop: _END,
            Restart: _RECYCLE,
        },
        (Start, Spawned, SpawnFailed, Swept, BecameReady, Recovered, *_DEADLINES),
    ),
    Phase.UNHEALTHY: _row(
        {
            BecameReady: Step(Phase.READY),
            Recovered: Step(Phase.READY),
            Hung: _CONDEMN,
            Exited: _CRASH,
            Stop: _END,
            Restart: _RECYCLE,
        },
        (Start, Spawned, SpawnFailed, Swept, BecameUnhealthy, *_DEADLINES),
    ),
    Phase.DOOMED: _row(
        {
            Exited: _CRASH,
            Stop: Step(Phase.ENDING),
            Restart: Step(Phase.RECYCLING),
        },
        (Start, Spawned, SpawnFailed, Swept, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.CLEARING: _row(
        {
            Swept: Step(Phase.DELAYED),
            Stop: Step(Phase.ENDED),
            Restart: Step(Phase.CLEARING),
        },
        (Start, Spawned, SpawnFailed, Exited, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.DELAYED: _row(
        {
            TimerFired: _SPAWN,
            Stop: Step(Phase.STOPPED),
            Restart: _SPAWN,
        },
        (Start, *_ANSWERS, *_JUDGEMENTS, StartDeadline, StopDeadline),
    ),
    Phase.RECYCLING: _row(
        {
            Exited: Step(Phase.CLEARING, (Do.SWEEP,)),
            Hung: Step(Phase.RECYCLING, (Do.KILL,)),
            StopDeadline: Step(Phase.RECYCLING, (Do.KILL,)),
            Stop: Step(Phase.ENDING),
        },
        (Start, Restart, Spawned, SpawnFailed, Swept, *_VERDICTS, TimerFired, StartDeadline),
    ),
    Phase.ABORTING: _row(
        {
            Spawned: _END,
            SpawnFailed: Step(Phase.STOPPED),
            Stop: Step(Phase.ABORTING),
        },
        (Start, Restart, Exited, Swept, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.ENDING: _row(
        {
            Exited: Step(Phase.ENDED, (Do.SWEEP,)),
            Hung: Step(Phase.ENDING, (Do.KILL,)),
            StopDeadline: Step(Phase.ENDING, (Do.KILL,)),
            Stop: Step(Phase.ENDING),
        },
        (Start, Restart, Spawned, SpawnFailed, Swept, *_VERDICTS, TimerFired, StartDeadline),
    ),
    Phase.ENDED: _row(
        {
            Swept: Step(Phase.STOPPED),
        },
        (Start, Stop, Restart, Spawned, SpawnFailed, Exited, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.STOPPED: _row({}, (Start, Stop, Restart, *_ANSWERS, *_JUDGEMENTS, *_DEADLINES)),
    Phase.SPENT: _row(
        {
            Swept: Step(Phase.FAILED),
            Stop: Step(Phase.ENDED),
            Restart: Step(Phase.CLEARING),
        },
        (Start, Spawned, SpawnFailed, Exited, *_JUDGEMENTS, *_DEADLINES),
    ),
    Phase.FAILED: _row(
        {
            Stop: Step(Phase.STOPPED),
            Restart: _SPAWN,
        },
        (Start, *_ANSWERS, *_JUDGEMENTS, *_DEADLINES),
    ),
}


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/. Ignored events are left out."""
    lines = ["stateDiagram-v2", "    [*] --> IDLE"]
    lines += [f"    {p.name}: {p.name} ({p.state}), {p.meaning}" for p in Phase]
    for phase, row in TABLE.items():
        for event, step in row.items():
            if step is IGNORED:
                continue
            lines.append(_arrow(phase, event, step))
            if step.spent is not None:
                lines.append(_arrow(phase, event, step.spent, " [budget spent]"))
    return "\n".join(lines) + "\n"


def _arrow(phase: Phase, event: type[Event], step: Step, guard: str = "") -> str:
    does = " / " + ", ".join(do.value for do in step.do) if step.do else ""
    return f"    {phase.name} --> {step.to.name}: {event.__name__}{guard}{does}"
