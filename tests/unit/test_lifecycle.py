"""One child's life, told as scripts: an event in, the commands out."""

from __future__ import annotations

from typing import get_args

import pytest

from supervisor import lifecycle_table
from supervisor.lifecycle import (
    Announce,
    BecameReady,
    BecameUnhealthy,
    CancelTimer,
    ChildState,
    Command,
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
    diagram,
)
from supervisor.restart import Policy

POLICY = Policy(
    budget=3,
    window_s=600.0,
    first_delay_s=0.25,
    max_delay_s=30.0,
    stable_s=60.0,
    start_timeout_s=900.0,
    stop_timeout_s=10.0,
)

EXAMPLES: dict[type[Event], Event] = {
    Start: Start(),
    Spawned: Spawned(7),
    SpawnFailed: SpawnFailed("no memory"),
    BecameReady: BecameReady(),
    BecameUnhealthy: BecameUnhealthy("probe failed"),
    Recovered: Recovered(),
    Hung: Hung("3 heartbeats missed"),
    Exited: Exited("exit 3"),
    Swept: Swept(),
    TimerFired: TimerFired(),
    StartDeadline: StartDeadline(),
    StopDeadline: StopDeadline(),
    Stop: Stop(30.0),
    Restart: Restart(),
}

#: The shortest way into every phase.
LOADING = (Start(), Spawned(7))
READY = (*LOADING, BecameReady())
SPENT = (*LOADING, Exited("exit 3"), *((Swept(), TimerFired(), Spawned(7), Exited("exit 3")) * 3))
WAYS: dict[Phase, tuple[Event, ...]] = {
    Phase.IDLE: (),
    Phase.SPAWNING: (Start(),),
    Phase.LOADING: LOADING,
    Phase.READY: READY,
    Phase.UNHEALTHY: (*READY, BecameUnhealthy("probe failed")),
    Phase.DOOMED: (*READY, Hung("3 heartbeats missed")),
    Phase.CLEARING: (*READY, Exited("exit 3")),
    Phase.DELAYED: (*READY, Exited("exit 3"), Swept()),
    Phase.RECYCLING: (*READY, Restart()),
    Phase.ABORTING: (Start(), Stop(30.0)),
    Phase.ENDING: (*READY, Stop(30.0)),
    Phase.ENDED: (*READY, Stop(30.0), Exited("exit 0")),
    Phase.STOPPED: (Stop(30.0),),
    Phase.SPENT: SPENT,
    Phase.FAILED: (*SPENT, Swept()),
}


class Script:
    """A life and its clock."""

    def __init__(self, *events: Event) -> None:
        self.life = Life("model", POLICY)
        self.now = 100.0
        for event in events:
            self(event)

    def __call__(self, event: Event, after_s: float = 0.0) -> list[Command]:
        self.now += after_s
        return self.life.handle(event, self.now, jitter=0.5)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_can_be_reached(phase: Phase) -> None:
    assert Script(*WAYS[phase]).life.phase is phase


def test_the_table_and_the_examples_name_every_pair() -> None:
    events = set(get_args(Event))
    assert set(EXAMPLES) == events
    assert set(lifecycle_table.TABLE) == set(Phase)
    assert all(set(row) == events for row in lifecycle_table.TABLE.values())


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_pair_has_its_outcome(phase: Phase, kind: type[Event]) -> None:
    script = Script(*WAYS[phase])
    step = lifecycle_table.TABLE[phase][kind]
    commands = script(EXAMPLES[kind])
    if step is lifecycle_table.IGNORED:
        assert commands == []
        assert script.life.phase is phase
    else:
        ends = {step.to} | ({step.spent.to} if step.spent else set())
        assert script.life.phase in ends
        assert script.life.state is script.life.phase.state


def test_a_row_with_a_gap_or_a_repetition_is_refused() -> None:
    with pytest.raises(ValueError, match="not at all"):
        lifecycle_table._row({Start: None}, ())
    with pytest.raises(ValueError, match="twice"):
        lifecycle_table._row({Start: None}, get_args(Event))


def test_a_good_start() -> None:
    script = Script()
    assert script(Start()) == [Spawn(1)]
    assert script.life.state is ChildState.STARTING
    assert script(Spawned(7)) == [
        Announce(ChildState.STARTING, ""),
        SetTimer(Timer.START, 900.0),
    ]
    assert (script.life.pid, script.life.started_at) == (7, 100.0)
    assert script(BecameReady(), after_s=5) == [
        Announce(ChildState.READY, ""),
        CancelTimer(Timer.START),
    ]
    assert script.life.since == 105.0


def test_a_crash_is_swept_before_it_is_started_again() -> None:
    script = Script(*READY)
    assert script(Exited("exit 3")) == [Announce(ChildState.BACKOFF, "exit 3"), Sweep()]
    assert script.life.pid == 0
    assert script(TimerFired()) == []
    assert script(Swept()) == [SetTimer(Timer.BACKOFF, 0.0)]
    assert script(TimerFired()) == [CancelTimer(Timer.BACKOFF), Spawn(2)]
    assert script(Spawned(8))[0] == Announce(ChildState.STARTING, "exit 3")
    assert script.life.restarts == 1
    script(BecameReady())
    assert script.life.reason == ""


def test_the_second_crash_in_a_row_waits() -> None:
    script = Script(*READY, Exited("exit 3"), Swept(), TimerFired(), Spawned(8), Exited("exit 3"))
    assert script(Swept()) == [SetTimer(Timer.BACKOFF, 0.25)]


def test_a_spent_budget_fails_until_restart() -> None:
    script = Script(*SPENT[:-1])
    reason = "exit 3; gave up after 3 restarts within 600 s"
    assert script(Exited("exit 3")) == [
        Announce(ChildState.FAILED, reason),
        CancelTimer(Timer.START),
        GiveUp(reason),
        Sweep(),
    ]
    assert script(Swept()) == []
    assert script(Start()) == []
    assert script(Restart("restart asked for")) == [Spawn(5)]
    script(Spawned(9))
    script(Exited("exit 3"))
    assert script(Swept()) == [SetTimer(Timer.BACKOFF, 0.0)]  # the budget is whole again


def test_restart_of_a_failed_child_still_waits_for_the_sweep() -> None:
    script = Script(*SPENT)
    assert script(Restart()) == [Announce(ChildState.BACKOFF, "restart asked for")]
    assert script(Swept()) == [SetTimer(Timer.BACKOFF, 0.0)]


def test_a_command_that_cannot_work_fails_at_once() -> None:
    script = Script(Start())
    assert script(SpawnFailed("no such command: vlm", permanent=True)) == [
        Announce(ChildState.FAILED, "no such command: vlm"),
        GiveUp("no such command: vlm"),
    ]
    assert script.life.restarts == 0


def test_a_spawn_that_fails_otherwise_is_tried_again() -> None:
    script = Script(Start())
    assert script(SpawnFailed("out of file descriptors")) == [
        Announce(ChildState.BACKOFF, "out of file descriptors"),
        SetTimer(Timer.BACKOFF, 0.0),
    ]
    script(TimerFired())
    script(SpawnFailed("out of file descriptors"))
    script(TimerFired())
    script(SpawnFailed("out of file descriptors"))
    script(TimerFired())
    assert GiveUp("out of file descriptors; gave up after 3 restarts within 600 s") in script(
        SpawnFailed("out of file descriptors")
    )


def test_a_child_that_can_only_hang_again_is_given_up() -> None:
    script = Script(*READY)
    script(Hung("worker.py:3: SyntaxError", permanent=True))
    assert script(Exited("killed")) == [
        Announce(ChildState.FAILED, "worker.py:3: SyntaxError"),
        GiveUp("worker.py:3: SyntaxError"),
        Sweep(),
    ]
    script(Swept())
    for event in (Restart(), Spawned(9), Hung("mute"), Exited("killed")):  # somebody mended it
        script(event)
    assert script.life.state is ChildState.BACKOFF


def test_a_hung_child_is_killed_and_counts_as_a_crash() -> None:
    script = Script(*READY)
    assert script(Hung("3 heartbeats missed")) == [
        Announce(ChildState.UNHEALTHY, "3 heartbeats missed"),
        Kill("3 heartbeats missed"),
    ]
    assert script(Hung("3 heartbeats missed")) == []
    assert script(Exited("killed by signal 9 (SIGKILL)")) == [
        Announce(ChildState.BACKOFF, "3 heartbeats missed"),
        Sweep(),
    ]
    assert script.life.restarts == 1


def test_a_child_that_never_gets_ready_is_killed() -> None:
    script = Script(*LOADING)
    assert script(StartDeadline(), after_s=900) == [
        Announce(ChildState.UNHEALTHY, "not ready within 900 s"),
        CancelTimer(Timer.START),
        Kill("not ready within 900 s"),
    ]


def test_exit_0_is_a_crash_too() -> None:
    script = Script(*READY)
    assert Sweep() in script(Exited("exit 0"))
    assert script.life.state is ChildState.BACKOFF


def test_unhealthy_and_back() -> None:
    script = Script(*READY)
    assert script(BecameUnhealthy("probe failed")) == [
        Announce(ChildState.UNHEALTHY, "probe failed")
    ]
    assert script(Recovered()) == [Announce(ChildState.READY, "")]


@pytest.mark.parametrize(
    ("ready_s", "unhealthy_s", "delay_s"),
    [
        (61.0, 0.0, 0.0),  # stable: the delay falls back
        (59.0, 0.0, 0.25),
        (61.0, 30.0, 0.0),  # stable, then unhealthy: was stable all the same
        (30.0, 40.0, 0.25),  # unhealthy time does not count
    ],
)
def test_the_delay_falls_back_after_stable_ready_time(
    ready_s: float, unhealthy_s: float, delay_s: float
) -> None:
    script = Script(*READY, Exited("exit 3"), Swept(), TimerFired(), Spawned(8), BecameReady())
    if unhealthy_s:
        script(BecameUnhealthy("probe failed"), after_s=ready_s)
        script(Recovered(), after_s=unhealthy_s)
        ready_s = 0.0
    script(Exited("exit 3"), after_s=ready_s)
    assert script(Swept()) == [SetTimer(Timer.BACKOFF, delay_s)]


def test_stop_asks_then_kills_then_sweeps() -> None:
    script = Script(*READY)
    assert script(Stop(30.0)) == [
        Announce(ChildState.STOPPING, "stop asked for"),
        SetTimer(Timer.STOP, 30.0),
        Terminate(30.0),
    ]
    assert script(StopDeadline(), after_s=30) == [Kill("did not end within 30 s")]
    assert script(Exited("killed by signal 9 (SIGKILL)")) == [
        Announce(ChildState.STOPPING, "killed by signal 9 (SIGKILL)"),
        CancelTimer(Timer.STOP),
        Sweep(),
    ]
    assert script(Swept()) == [Announce(ChildState.STOPPED, "killed by signal 9 (SIGKILL)")]
    assert script(Restart()) == []


def test_a_second_stop_brings_a_new_deadline_but_no_second_signal() -> None:
    script = Script(*READY, Stop(30.0))
    assert script(Stop(0.0)) == [SetTimer(Timer.STOP, 0.0)]


def test_a_child_that_hangs_while_stopping_is_killed() -> None:
    script = Script(*READY, Stop(30.0))
    assert Kill("3 heartbeats missed") in script(Hung("3 heartbeats missed"))
    assert script.life.state is ChildState.STOPPING


@pytest.mark.parametrize("phase", [Phase.ABORTING, Phase.ENDING, Phase.ENDED, Phase.STOPPED])
def test_nothing_undoes_a_stop(phase: Phase) -> None:
    script = Script(*WAYS[phase])
    assert script(Restart()) == script(Start()) == []
    assert script.life.phase is phase


def test_stop_overtakes_a_spawn_under_way() -> None:
    script = Script(Start())
    assert script(Stop(5.0)) == [Announce(ChildState.STOPPING, "stop asked for")]
    assert script(Spawned(7)) == [SetTimer(Timer.STOP, 5.0), Terminate(5.0)]


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.DELAYED, Phase.FAILED])
def test_stop_without_a_process_is_stopped_at_once(phase: Phase) -> None:
    script = Script(*WAYS[phase])
    failed = script.life.reason if phase is Phase.FAILED else ""  # that is worth more to know
    assert Announce(ChildState.STOPPED, failed or "stop asked for") in script(Stop(30.0))


def test_restart_of_a_running_child_is_no_crash() -> None:
    script = Script(*READY)
    assert script(Restart()) == [
        Announce(ChildState.STOPPING, "restart asked for"),
        SetTimer(Timer.STOP, 10.0),
        Terminate(10.0),
    ]
    assert script(StopDeadline()) == [Kill("did not end within 10 s")]
    assert script(Exited("exit 0")) == [
        Announce(ChildState.BACKOFF, "restart asked for"),
        CancelTimer(Timer.STOP),
        Sweep(),
    ]
    assert script(Swept()) == [SetTimer(Timer.BACKOFF, 0.0)]
    assert script.life.restarts == 0


def test_stop_overtakes_a_restart() -> None:
    script = Script(*READY, Restart())
    assert script(Stop(3.0)) == [
        Announce(ChildState.STOPPING, "stop asked for"),
        SetTimer(Timer.STOP, 3.0),
    ]
    script(Exited("exit 0"))
    script(Swept())
    assert script.life.state is ChildState.STOPPED


def test_restart_cuts_the_backoff_short() -> None:
    script = Script(*WAYS[Phase.DELAYED])
    assert script(Restart()) == [CancelTimer(Timer.BACKOFF), Spawn(2)]


def test_the_diagram_draws_every_step() -> None:
    drawn = diagram().splitlines()
    assert drawn[0] == "stateDiagram-v2"
    for phase, row in lifecycle_table.TABLE.items():
        assert any(line.strip().startswith(f"{phase.name}: ") for line in drawn)
        for event, step in row.items():
            if step is not lifecycle_table.IGNORED:
                start = f"    {phase.name} --> {step.to.name}: {event.__name__}"
                assert any(line.startswith(start) for line in drawn)
    assert "    READY --> SPENT: Exited [budget spent] / GiveUp, Sweep" in drawn
