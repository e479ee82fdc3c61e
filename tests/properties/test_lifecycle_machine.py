"""A child's life against a world of fake processes: whatever happens, the laws hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.lifecycle import (
    Announce,
    BecameReady,
    BecameUnhealthy,
    CancelTimer,
    ChildState,
    Event,
    Exited,
    GiveUp,
    Hung,
    Kill,
    Life,
    Phase,
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
from supervisor.restart import Policy

POLICY = Policy(
    budget=1,
    window_s=100.0,
    first_delay_s=0.5,
    max_delay_s=4.0,
    stable_s=20.0,
    start_timeout_s=15.0,
    stop_timeout_s=5.0,
)
FIRED: dict[Timer, Event] = {
    Timer.START: StartDeadline(),
    Timer.STOP: StopDeadline(),
    Timer.BACKOFF: TimerFired(),
}
FINAL = (ChildState.WAITING, ChildState.STOPPED, ChildState.FAILED)


class LifeMachine(RuleBasedStateMachine):
    """Carries every command out on a world that holds at most what Linux would hold."""

    @initialize(stops_after=st.integers(0, 60), start_at_once=st.integers(0, 9))
    def begin(self, stops_after: int, start_at_once: int) -> None:
        #: most lives shall be long, so nobody stops them before this many events
        self.stops_after = stops_after
        self.fed = 0
        self.now = 0.0
        self.life = Life("model", POLICY)
        self.spawn_due = False
        self.sweep_due = False
        self.alive = False
        self.leftovers = False
        self.killed = False
        self.stopped = False
        self.forgiven = False
        self.timers: dict[Timer, float] = {}
        self.restarts_at: list[float] = []
        self.told = ChildState.WAITING
        self.gave_up = False
        self.spawns = 0
        self.not_before = 0.0
        if start_at_once:
            self.start()

    def feed(self, event: Event, jitter: float = 0.0) -> None:
        self.fed += 1
        before, restarts = self.life.state, self.life.restarts
        commands = self.life.handle(event, self.now, jitter)
        if self.life.restarts > restarts:
            self.restarts_at.append(self.now)
        if before is ChildState.FAILED and self.life.state is not ChildState.FAILED:
            assert isinstance(event, Restart | Stop)
        for place, command in enumerate(commands):
            match command:
                case Spawn(generation):
                    assert place == len(commands) - 1, "the answer could not be fed at once"
                    assert not self.alive and not self.spawn_due, "two processes"
                    assert not self.leftovers and not self.sweep_due, "spawned beside leftovers"
                    assert not self.stopped, "spawned after stop"
                    assert self.now >= self.not_before, "spawned before the backoff was over"
                    self.spawns += 1
                    assert generation == self.spawns
                    self.spawn_due = True
                case Sweep():
                    assert place == len(commands) - 1, "the answer could not be fed at once"
                    assert not self.alive and not self.sweep_due
                    self.sweep_due = True
                case Terminate():
                    assert self.alive
                case Kill(reason):
                    assert self.alive and reason
                    self.killed = True
                case SetTimer(kind, delay_s):
                    assert delay_s >= 0
                    self.timers[kind] = self.now + delay_s
                    if kind is Timer.BACKOFF:
                        self.not_before = self.now + delay_s
                case CancelTimer(kind):
                    self.timers.pop(kind, None)
                case Announce(state):
                    assert state is self.life.state
                    self.told = state
                case GiveUp(reason):
                    assert reason
                    permanent = isinstance(event, SpawnFailed) and event.permanent
                    recent = [at for at in self.restarts_at if self.now - at < POLICY.window_s]
                    assert permanent or len(recent) == POLICY.budget
                    self.gave_up = True

    # ------------------------------------------------------------ what a world can do

    @precondition(lambda self: self.life.state in FINAL)
    @rule()
    def start(self) -> None:
        self.feed(Start())

    @precondition(lambda self: self.spawn_due)
    @rule()
    def spawned(self) -> None:
        self.spawn_due = False
        self.alive = self.leftovers = True
        self.killed = False
        self.feed(Spawned(100 + self.spawns))

    @precondition(lambda self: self.spawn_due)
    @rule(permanent=st.booleans(), jitter=st.floats(0.0, 0.999))
    def spawn_fails(self, permanent: bool, jitter: float) -> None:
        self.spawn_due = False
        self.feed(SpawnFailed("cannot", permanent), jitter)

    @precondition(lambda self: self.life.state is ChildState.STARTING and self.alive)
    @rule()
    def becomes_ready(self) -> None:
        self.feed(BecameReady())
        assert self.life.state is ChildState.READY

    @precondition(lambda self: self.alive)
    @rule()
    def hangs(self) -> None:
        self.feed(Hung("mute"))

    @precondition(lambda self: self.alive)
    @rule(code=st.integers(0, 2), jitter=st.floats(0.0, 0.999))
    def exits(self, code: int, jitter: float) -> None:
        self.alive = False
        stopping = self.life.state is ChildState.STOPPING
        self.feed(Exited(f"exit {code}"), jitter)
        assert (self.life.state in (ChildState.BACKOFF, ChildState.FAILED)) or stopping

    @precondition(lambda self: self.sweep_due)
    @rule()
    def swept(self) -> None:
        self.sweep_due = self.leftovers = False
        self.feed(Swept())

    @rule(
        event=st.sampled_from([BecameReady(), BecameUnhealthy("weak"), Recovered(), Hung("mute")])
    )
    def judged(self, event: Event) -> None:
        self.feed(event)

    @rule(passed_s=st.floats(0.0, 40.0))
    def time_passes(self, passed_s: float) -> None:
        end = self.now + passed_s
        while due := sorted((at, kind) for kind, at in self.timers.items() if at <= end):
            at, kind = due[0]
            self.now = max(self.now, at)
            del self.timers[kind]
            self.feed(FIRED[kind])
        self.now = end

    @rule(seldom=st.integers(0, 2))
    def user_restarts(self, seldom: int) -> None:
        if seldom != 1 and self.life.state is not ChildState.FAILED:
            return
        self.not_before = self.now if self.life.state is ChildState.BACKOFF else self.not_before
        self.feed(Restart())
        if self.life.state is not ChildState.WAITING:
            self.restarts_at.clear()
        self.gave_up = self.gave_up and self.life.state is ChildState.FAILED

    @precondition(lambda self: self.fed >= self.stops_after)
    @rule(deadline_s=st.floats(0.0, 10.0))
    def somebody_stops(self, deadline_s: float) -> None:
        self.stop(deadline_s)

    def stop(self, deadline_s: float) -> None:
        self.stopped = True
        self.feed(Stop(deadline_s))
        assert self.life.state in (ChildState.STOPPING, ChildState.STOPPED)

    # ------------------------------------------------------------------------- the laws

    @invariant()
    def never_stuck(self) -> None:
        moving = self.alive or self.spawn_due or self.sweep_due or self.timers
        assert moving or self.life.state in FINAL

    @invariant()
    def what_is_doomed_was_killed(self) -> None:
        assert self.killed or self.life.phase is not Phase.DOOMED

    @invariant()
    def failed_has_a_cause(self) -> None:
        assert self.gave_up or self.life.state is not ChildState.FAILED

    @invariant()
    def stopped_means_gone(self) -> None:
        if self.life.state is ChildState.STOPPED:
            assert not (self.alive or self.leftovers or self.timers or self.spawn_due)

    @invariant()
    def others_know(self) -> None:
        assert self.told is self.life.state or self.spawn_due

    @invariant()
    def the_process_id_is_told(self) -> None:
        assert bool(self.life.pid) == self.alive
        assert self.life.generation == self.spawns

    @invariant()
    def a_ready_child_has_no_reason(self) -> None:
        assert self.life.state is not ChildState.READY or self.life.reason == ""

    def teardown(self) -> None:
        """Whatever state it was left in, a stop ends it, whatever else is asked for."""
        if not hasattr(self, "life"):
            return
        self.stop(1.0)
        for _ in range(4):
            if self.spawn_due:
                self.spawned()
            if self.alive:
                self.time_passes(1.0)
                assert self.killed
                self.exits(0, 0.0)
            self.feed(Restart())
            self.feed(Start())
            if self.sweep_due:
                self.swept()
        assert self.life.state is ChildState.STOPPED
        self.stopped_means_gone()


TestLifeMachine = LifeMachine.TestCase
TestLifeMachine.settings = settings(max_examples=150, stateful_step_count=40)
