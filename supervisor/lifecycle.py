"""One child's life: it takes events, follows the transition table, returns commands.

Laws, searched by ``tests/properties/test_lifecycle_machine.py``:

1. At most one process per child: after an exit its leftovers are swept, and nothing is spawned
   before ``Swept`` says that they are gone.
2. Nothing is spawned after ``Stop``. STOPPED means that nothing of the child is left.
3. FAILED is entered when the restart budget is spent or the command can never work, and left only
   by the user's word: ``Restart``, or ``Stop`` (to STOPPED).
4. It never gets stuck: outside WAITING, STOPPED and FAILED there is a live process, a timer, or a
   command whose answer is due.

A ChildState is what others are told; a ``Phase`` is finer, so that every rule fits in the table::

    WAITING   IDLE
                │ Start
    STARTING  SPAWNING ──▶ LOADING ──────┐ BecameReady
                ▲             │          ▼
    READY       │             │        READY ◀──Recovered── UNHEALTHY   (BecameUnhealthy ──▶)
                │             │ any exit, or Hung / StartDeadline ──▶ DOOMED ──▶ its exit
    BACKOFF   DELAYED ◀──── CLEARING ◀── exit, budget left
    FAILED    FAILED ◀───── SPENT ◀───── exit, budget spent
    STOPPING  RECYCLING (Restart: stops, then CLEARING) · ABORTING · ENDING (Stop) · ENDED (sweeps)
    STOPPED   STOPPED

``diagram()`` renders the whole table for docs/. Whoever carries commands out (the hands) must feed
``Spawned`` or ``SpawnFailed`` after each Spawn, ``Exited`` after a spawned process is reaped, and
``Swept`` after each Sweep; these two commands always come last in a list, so the answer may be fed
at once.

Pure: it knows no clock, process, signal or log.
"""

from __future__ import annotations

from typing import assert_never

from supervisor.lifecycle_table import IGNORED, TABLE, Do, Phase, Step, diagram
from supervisor.lifecycle_words import (
    Announce,
    BecameReady,
    BecameUnhealthy,
    CancelTimer,
    Command,
    Event,
    Exited,
    GiveUp,
    Hung,
    Kill,
    Recovered,
    Restart,
    SetTimer,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    StartDeadline,
    Stop,
    StopDeadline,
    Sweep,
    Swept,
    Terminate,
    Timer,
    TimerFired,
)
from supervisor.messages import ChildState
from supervisor.restart import Budget, Policy

__all__ = [
    "Announce",
    "BecameReady",
    "BecameUnhealthy",
    "CancelTimer",
    "ChildState",
    "Command",
    "Event",
    "Exited",
    "GiveUp",
    "Hung",
    "Kill",
    "Life",
    "Phase",
    "Recovered",
    "Restart",
    "SetTimer",
    "Spawn",
    "SpawnFailed",
    "Spawned",
    "Start",
    "StartDeadline",
    "Stop",
    "StopDeadline",
    "Sweep",
    "Swept",
    "Terminate",
    "Timer",
    "TimerFired",
    "diagram",
]


class Life:
    """One child's life. ``handle`` takes every event and returns the commands to carry out.

    Attributes to read: ``phase``, ``state`` and ``since`` (when it began, monotonic seconds),
    ``reason`` (why it is not READY, for people), ``pid`` (0: no process), ``started_at`` (monotonic
    time of the last spawn, 0: none yet), ``generation`` (Spawns so far), ``restarts`` (crashes
    that were granted a restart).
    """

    __slots__ = (
        "_announced",
        "_budget",
        "_delay_s",
        "_hopeless",
        "_ready_since",
        "_stop_s",
        "generation",
        "name",
        "phase",
        "pid",
        "policy",
        "reason",
        "restarts",
        "since",
        "started_at",
    )

    def __init__(self, name: str, policy: Policy, now: float = 0.0) -> None:
        self.name = name
        self.policy = policy
        self.phase = Phase.IDLE
        self.since = now
        self.reason = ""
        self.pid = 0
        self.started_at = 0.0
        self.generation = 0
        self.restarts = 0
        self._budget = Budget(policy)
        self._delay_s = 0.0
        self._hopeless = False  #: another process would end the same way
        self._stop_s = policy.stop_timeout_s
        self._ready_since: float | None = None
        self._announced: tuple[ChildState, int, str] = (self.state, 0, "")

    @property
    def state(self) -> ChildState:
        """What others are told."""
        return self.phase.state

    def handle(self, event: Event, now: float, jitter: float) -> list[Command]:
        """Take one event; ``now`` is monotonic seconds, ``jitter`` a random number of [0, 1)."""
        step = TABLE[self.phase][type(event)]
        if step is IGNORED:
            return []
        before = self.phase
        self._note(event, now)
        if step.spent is not None:
            step = self._crashed(step, step.spent, event, now, jitter)
        self._enter(step.to, now)
        if Do.SPAWN in step.do:
            self.generation += 1
        timers = self._timers(before, again=isinstance(event, Stop))
        return [*self._announcements(), *timers, *(self._command(do, event) for do in step.do)]

    @property
    def on_purpose(self) -> bool:
        """It is being ended by us; ``reason`` says why."""
        return self.phase in (Phase.DOOMED, Phase.RECYCLING)

    def _note(self, event: Event, now: float) -> None:
        """Keep what the event says."""
        match event:
            case Spawned(pid):
                self.pid, self.started_at = pid, now
            case StartDeadline():
                self.reason = f"not ready within {self.policy.start_timeout_s:g} s"
            case BecameReady() | Recovered():
                self.reason = ""
            case Exited(reason):
                self.pid = 0
                # The exit of what we killed or recycled says less than why we did it.
                if not self.on_purpose:
                    self.reason = reason
            case Stop(deadline_s, reason):
                self._stop_s = deadline_s
                if self.phase is not Phase.FAILED:  # what made it fail is worth more
                    self.reason = reason
            case Restart(reason):
                self._stop_s, self.reason = self.policy.stop_timeout_s, reason
                self._budget.reset()
                self._delay_s = 0.0
                self._hopeless = False
            case Hung(reason, permanent):
                self.reason, self._hopeless = reason, permanent
            case BecameUnhealthy(reason) | SpawnFailed(reason):
                self.reason = reason

    def _crashed(self, again: Step, spent: Step, event: Event, now: float, jitter: float) -> Step:
        """Charge the budget and choose the step."""
        if self._hopeless or (isinstance(event, SpawnFailed) and event.permanent):
            self._hopeless = False
            return spent
        delay_s = self._budget.crashed(now, self._ready_since, jitter)
        if delay_s is None:
            self.reason += (
                f"; gave up after {self.policy.budget} restarts within {self.policy.window_s:g} s"
            )
            return spent
        self._delay_s = delay_s
        self.restarts += 1
        return again

    def _enter(self, phase: Phase, now: float) -> None:
        if phase is Phase.READY:
            if self._ready_since is None:
                self._ready_since = now
        elif phase is Phase.SPAWNING or (
            self.phase is Phase.READY
            and self._ready_since is not None
            and now - self._ready_since < self.policy.stable_s
        ):
            # Once stable, a passing weakness does not make the next crash count as an early one.
            self._ready_since = None
        if phase.state is not self.state:
            self.since = now
        self.phase = phase

    def _timers(self, before: Phase, again: bool) -> list[Command]:
        old, new = before.timer, self.phase.timer
        commands: list[Command] = []
        if old is not None and old is not new:
            commands.append(CancelTimer(old))
        if new is not None and (again or before is not self.phase):
            commands.append(SetTimer(new, self._delay_of(new)))
        return commands

    def _delay_of(self, timer: Timer) -> float:
        delays = {
            Timer.START: self.policy.start_timeout_s,
            Timer.STOP: self._stop_s,
            Timer.BACKOFF: self._delay_s,
        }
        return delays[timer]

    def _announcements(self) -> list[Command]:
        told = (self.state, self.generation, self.reason)
        if self.phase is Phase.SPAWNING or told == self._announced:
            return []
        self._announced = told
        return [Announce(self.state, self.reason)]

    def _command(self, do: Do, event: Event) -> Command:
        match do:
            case Do.SPAWN:
                return Spawn(self.generation)
            case Do.TERMINATE:
                return Terminate(self._stop_s)
            case Do.KILL:
                if isinstance(event, StopDeadline):
                    return Kill(f"did not end within {self._stop_s:g} s")
                return Kill(self.reason)
            case Do.SWEEP:
                return Sweep()
            case Do.GIVE_UP:
                return GiveUp(self.reason)
            case _:  # pragma: no cover
                assert_never(do)
