"""The model server's judgement, told as scripts: what happens, and what is said and done."""

from __future__ import annotations

from typing import Any

import pytest

from backend_adapter.readiness import Readiness
from backend_adapter.readiness_words import (
    Awaits,
    BackendDown,
    BackendFailed,
    BackendUp,
    Command,
    Probe,
    Report,
    StartBenchmark,
    StopBenchmark,
    Verdict,
    Wake,
)
from supervisor.messages import LIFECYCLE


class Play:
    """Feeds events at a clock that the test moves, and keeps what was said last."""

    def __init__(self, **changes: Any) -> None:
        arguments: dict[str, Any] = {
            "ready_log": False,
            "benchmark": False,
            "probe_every_s": 5.0,
            "probe_failures": 2,
            "stall_timeout_s": 60.0,
            "now": 0.0,
        }
        self.machine = Readiness(**(arguments | changes))
        self.now = 0.0
        self.wake = 0.0
        self.backend: Command | None = None
        self.verdict: Verdict | None = None
        self.verdicts: list[Verdict] = []
        self.report: Report | None = None
        self.probing = False
        self.attempt = 0

    def take(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            match command:
                case Wake(at):
                    assert at > self.now
                    self.wake = at
                case Probe():
                    assert not self.probing
                    self.probing = True
                case StartBenchmark(attempt):
                    self.attempt = attempt
                case StopBenchmark():
                    self.attempt = 0
                case Verdict():
                    self.verdict = command
                    self.verdicts.append(command)
                case Report():
                    self.report = command
                case BackendUp() | BackendDown() | BackendFailed():
                    self.backend = command
        return commands

    def state(
        self, state: str, generation: int = 1, reason: str = "", started_at: float = 0.0
    ) -> list[Command]:
        return self.take(
            self.machine.model_state(state, generation, reason, self.now, started_at=started_at)
        )

    def line(self, kind: str = "ready", line: str = "loaded", generation: int = 1) -> None:
        self.take(self.machine.log_match(generation, kind, "pattern", line, self.now))

    def probe(self, ok: bool = True, text: str = "HTTP 503") -> list[Command]:
        """Answer the probe under way; wait for the next one first where there is none."""
        while not self.probing:
            assert self.wake > self.now
            self.sleep_until(self.wake)
        self.probing = False
        return self.take(self.machine.probe_result(ok, "" if ok else text, self.now))

    def refuse(self) -> list[Command]:
        return self.take(self.machine.connection_refused(self.now))

    def benchmark(self, ok: bool = True) -> list[Command]:
        attempt, self.attempt = self.attempt, 0
        if ok:
            return self.take(self.machine.benchmark_done(attempt, self.now))
        return self.take(self.machine.benchmark_failed(attempt, "no success", self.now))

    def sleep_until(self, at: float) -> list[Command]:
        self.now = max(self.now, at)
        return self.take(self.machine.tick(self.now))

    def up(self) -> bool:
        return self.says(BackendUp)

    def says(self, kind: type[Command]) -> bool:
        return isinstance(self.backend, kind)

    @property
    def reason(self) -> str:
        assert isinstance(self.backend, BackendDown | BackendFailed)
        return self.backend.reason

    @property
    def error(self) -> str:
        assert self.report is not None
        return self.report.error


def started(**changes: Any) -> Play:
    play = Play(**changes)
    play.state("starting")
    return play


def running(**changes: Any) -> Play:
    play = started(**changes)
    play.probe()
    assert play.up()
    return play


# ------------------------------------------------------------------------------- loading


def test_what_it_waits_for_is_known_at_each_step() -> None:
    play = Play(ready_log=True, benchmark=True)
    assert play.machine.awaits is Awaits.NOTHING
    play.state("starting")
    assert play.machine.awaits is Awaits.LINE
    play.line()
    assert play.machine.awaits is Awaits.PROBE
    for _ in range(3):
        play.probe(ok=False)
    assert play.machine.awaits is Awaits.PROBE, "it has never answered"
    play.probe()
    assert play.machine.awaits is Awaits.BENCHMARK
    play.benchmark(ok=False)
    assert play.machine.awaits is Awaits.NOTHING, "the verdict says what is wrong"
    play.sleep_until(play.wake)
    play.benchmark()
    assert play.machine.awaits is Awaits.NOTHING
    for _ in range(3):
        play.probe(ok=False)
    assert play.machine.awaits is Awaits.NOTHING, "so it does of one that does not answer any more"


def test_the_first_good_probe_makes_it_ready() -> None:
    play = Play()
    assert play.state("starting") == [BackendDown("the model server is loading"), Probe()]
    play.now = 3.5
    play.probing = False
    assert play.take(play.machine.probe_result(True, "", 3.5)) == [
        BackendUp(),
        Verdict(1, True, True, False, ""),
        Report(1, True, "", 3.5),
        Wake(8.5),
    ]


def test_it_is_probed_fast_until_it_answers_and_slowly_then() -> None:
    play = started()
    for _ in range(5):
        before = play.now
        play.probe(ok=False)
        assert play.wake == before + 0.25
        play.sleep_until(play.wake)
    assert play.error == "" and not play.up()  # it loads: that is no error
    play.probe()
    assert play.wake == play.now + 5.0


def test_the_ready_line_comes_before_the_first_probe() -> None:
    play = started(ready_log=True)
    assert play.sleep_until(100.0) == []
    assert play.report == Report(1, False, "", 0.0)
    play.line()
    assert play.probing and not play.up()
    play.probe()
    assert play.up()
    play.line()  # a second one changes nothing
    assert play.up()


def test_a_ready_line_of_the_past_is_believed_from_the_supervisors_state() -> None:
    play = Play(ready_log=True)
    assert not any(isinstance(c, Report | Verdict) for c in play.state("ready"))
    assert play.probing
    play.probe()
    assert play.up()


def test_an_external_model_server_is_probed_too() -> None:
    play = Play()
    play.now = 2.0
    play.state("external", 0)
    play.probe()
    assert play.up()
    assert play.report == Report(0, True, "", 2.0)
    assert play.state("external", 0) == []  # said again after a reconnect


def test_states_of_a_process_that_does_not_run() -> None:
    play = Play()
    for state in ("waiting", "stopping", "stopped"):
        play.state(state, 0)
        assert state in play.reason
    assert not play.probing and play.wake == 0.0


def test_a_state_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="dancing"):
        Play().state("dancing")


# ----------------------------------------------------------------------------- benchmark


def test_the_benchmark_comes_between_the_first_good_probe_and_ready() -> None:
    play = started(benchmark=True)
    play.probe()
    assert play.attempt == 1 and not play.up()
    assert play.reason == "the model server is being benchmarked"
    assert play.verdict is not None and play.verdict.healthy and not play.verdict.ready
    play.now = 9.0
    play.benchmark()
    assert play.up()
    assert play.report == Report(1, True, "", 9.0)


def test_a_failed_benchmark_is_reported_and_tried_again_ever_later() -> None:
    play = started(benchmark=True)
    play.probe()
    delays = []
    for attempt in range(1, 9):
        assert play.attempt == attempt
        failed_at = play.now
        play.benchmark(ok=False)
        assert "no success" in play.error and "no success" in play.reason
        while not play.attempt:
            play.sleep_until(play.wake)
            if play.probing:
                play.probe()
        delays.append(play.now - failed_at)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    play.benchmark()
    assert play.up() and play.error == ""


def test_the_benchmark_of_a_dead_model_server_is_stopped_and_begun_again() -> None:
    play = started(benchmark=True)
    play.probe()
    stale = play.attempt
    assert StopBenchmark() in play.state("backoff", 1, "exit 1")
    play.state("starting", 2)
    play.probing = False
    play.take(play.machine.probe_result(True, "", play.now))
    assert play.attempt == stale + 1
    assert play.machine.benchmark_done(stale, play.now) == []
    assert play.machine.benchmark_failed(stale, "late", play.now) == []
    play.benchmark()
    assert play.up()


def test_a_restart_repeats_no_benchmark() -> None:
    play = started(benchmark=True)
    play.probe()
    play.benchmark()
    play.state("backoff", 1, "killed by signal 9")
    assert not play.up()
    play.state("starting", 2)
    play.probe()
    assert play.up() and play.attempt == 0


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_what_an_earlier_adapter_measured_is_not_measured_again(state: str) -> None:
    play = Play(benchmark=True)
    play.take(play.machine.model_state(state, 1, "", 0.0, measured=True))
    play.probe()
    assert play.up() and play.attempt == 0


def test_a_benchmark_is_stopped_when_its_outcome_turns_out_to_be_known() -> None:
    play = started(benchmark=True)
    play.probe()
    assert play.attempt == 1
    assert play.machine.model_state("starting", 1, "", 0.0, measured=True) == [
        StopBenchmark(),
        BackendUp(),
        Verdict(1, True, True, False, ""),
        Report(1, True, "", 0.0),
    ]


def test_a_benchmark_is_not_begun_while_it_does_not_answer() -> None:
    play = started(benchmark=True)
    play.probe()
    play.probe(ok=False)
    play.probe(ok=False)
    play.benchmark(ok=False)
    for _ in range(40):
        play.probe(ok=False)
    assert play.attempt == 0
    play.probe()
    assert play.attempt == 2


# -------------------------------------------------------------------------------- health


def test_probes_that_fail_in_a_row_make_it_unhealthy_and_a_good_one_well() -> None:
    play = running(probe_failures=3)
    for _ in range(2):
        play.probe(ok=False)
        assert play.up() and play.error == ""
    play.probe(ok=False)
    assert not play.up() and "HTTP 503" in play.reason and "HTTP 503" in play.error
    assert play.verdict == Verdict(1, False, False, False, play.reason)
    assert play.wake == play.now + 0.25
    play.probe()
    assert play.up() and play.error == ""
    assert play.report == Report(1, True, "", 0.0)


def test_a_refused_connection_holds_requests_until_the_next_good_probe() -> None:
    play = running()
    assert play.refuse() == [BackendDown("the model server refuses connections"), Probe()]
    assert play.refuse() == []
    assert play.report is not None and play.report.ready  # not yet: one probe decides nothing
    play.probe(ok=False)
    assert not play.up() and play.wake == play.now + 0.25
    play.probe()
    assert play.up()


def test_a_probe_older_than_the_refusal_does_not_count() -> None:
    play = running()
    play.sleep_until(play.wake)
    assert play.probing
    play.refuse()
    assert Probe() in play.probe()
    assert not play.up()
    play.probe()
    assert play.up()


def test_refusals_right_after_good_probes_are_no_busy_loop() -> None:
    play = running()
    play.refuse()
    play.probe()
    assert play.up()
    assert Probe() not in play.refuse()
    assert not play.up() and play.wake == play.now + 0.25
    play.sleep_until(play.wake)
    assert play.probing
    play.probe()
    assert play.up()
    play.machine.progress(play.now + 0.01)
    assert Probe() in play.refuse()  # requests had come through meanwhile


def test_a_refused_connection_while_it_is_not_well_says_nothing() -> None:
    assert started().refuse() == []


# -------------------------------------------------------------------------------- errors


def test_a_death_is_an_error_until_it_answers_again() -> None:
    play = running()
    play.state("backoff", 1, "killed by signal 9")
    assert "killed by signal 9" in play.reason and "killed by signal 9" in play.error
    play.state("starting", 2)
    assert "killed by signal 9" in play.error
    play.probe()
    assert play.up() and play.error == ""


def test_a_death_without_a_reason() -> None:
    play = running()
    play.state("backoff", 1)
    assert play.error


def test_a_failed_model_server_is_said_to_be_so_until_it_is_started_again() -> None:
    play = running()
    play.state("failed", 1, "11 restarts in 600 s")
    assert play.says(BackendFailed)
    assert "11 restarts" in play.reason and "11 restarts" in play.error
    play.state("starting", 2)
    assert play.says(BackendDown)
    play.probe()
    assert play.up() and play.error == ""


def test_a_good_answer_that_comes_after_the_death_does_not_count() -> None:
    play = running()
    play.sleep_until(play.wake)
    play.state("backoff", 1, "exit 1")
    play.probe()
    assert "exit 1" in play.error and not play.probing
    play.state("starting", 2)
    play.probe()
    assert play.up()


def test_a_probe_of_the_generation_before_does_not_count() -> None:
    play = running()
    play.sleep_until(play.wake)
    play.state("starting", 2)
    assert play.probing and not play.up()
    assert Probe() in play.probe()
    assert not play.up()
    play.probe()
    assert play.up()


def test_an_error_line_lasts_until_a_good_probe_an_interval_later() -> None:
    play = running()
    play.now = 4.0
    play.line("error", "CUDA error: out of memory\n")
    assert play.error == "the model server's log says: CUDA error: out of memory"
    assert play.report is not None and play.report.ready
    play.probe()  # at 5 s: too soon to tell
    assert "CUDA" in play.error
    play.probe()
    assert play.error == ""


def test_an_error_line_before_the_ready_line_does_not_end_the_waiting() -> None:
    play = started(ready_log=True)
    play.line("error", "")
    assert play.error == "the model server's log says: pattern"
    play.line()
    assert play.error == ""
    play.probe()
    assert play.up()


def test_lines_and_states_of_an_earlier_generation_do_nothing() -> None:
    play = Play(ready_log=True)
    play.state("starting", 2)
    play.line("ready", generation=1)
    play.line("error", generation=1)
    assert not play.probing and play.error == ""
    assert play.state("failed", 1, "old") == []
    assert play.says(BackendDown)


def test_all_errors_are_told_at_once() -> None:
    play = started(benchmark=True)
    play.probe()
    play.benchmark(ok=False)
    play.line("error", "Xid 79")
    play.probe(ok=False)
    play.probe(ok=False)
    assert play.error.count(";") == 2


# -------------------------------------------------------------------------------- stalls


def stall(play: Play) -> None:
    for _ in range(1000):
        if "stalled" in play.error:
            return
        play.probe(ok=False)
    raise AssertionError("never stalled")


def test_it_is_wedged_once_it_neither_answers_nor_makes_progress() -> None:
    play = running()
    play.now = 1.0
    play.machine.progress(30.0)
    play.machine.progress(20.0)
    stall(play)
    assert 90.0 <= play.now < 90.5
    assert play.verdict is not None and play.verdict.wedged and not play.verdict.healthy
    for text in ("HTTP 500", "timed out"):
        play.probe(ok=False, text=text)
    assert sum(verdict.wedged for verdict in play.verdicts) == 1


def test_a_stall_is_noticed_while_a_probe_hangs() -> None:
    play = running(stall_timeout_s=8.0)
    play.probe(ok=False)
    play.probe(ok=False)
    assert play.now == 10.0 and play.verdict is not None and play.verdict.wedged

    play = running(stall_timeout_s=11.0)
    play.probe(ok=False)
    play.probe(ok=False)
    play.sleep_until(play.wake)
    assert play.probing and play.wake == 11.0
    play.sleep_until(play.wake)
    assert play.verdict is not None and play.verdict.wedged


def test_progress_or_a_good_probe_ends_a_stall() -> None:
    play = Play()
    play.state("external", 0)
    play.probe()
    stall(play)
    play.machine.progress(play.now)
    play.probe(ok=False)
    assert "stalled" not in play.error
    stall(play)
    play.probe()
    assert play.up() and play.error == ""


def test_progress_alone_keeps_a_busy_one_from_being_wedged() -> None:
    play = running()
    while play.now < 300.0:
        play.machine.progress(play.now)
        play.probe(ok=False)
    assert "stalled" not in play.error and not play.up()


def test_an_external_one_is_reported_as_stalled_but_never_wedged() -> None:
    play = Play()
    play.state("external", 0)
    play.probe()
    stall(play)
    assert not any(verdict.wedged for verdict in play.verdicts)


def test_one_that_never_answered_is_not_wedged() -> None:
    play = started()
    for _ in range(600):
        play.probe(ok=False)
    assert play.now > 100.0
    assert not any(verdict.wedged for verdict in play.verdicts)


# --------------------------------------------------------------------------------- times


def test_the_load_time_counts_from_the_first_start_since_it_was_ready() -> None:
    play = Play()
    play.now = 10.0
    play.state("starting", 1)
    play.now = 20.0
    play.state("backoff", 1, "exit 1")
    play.state("starting", 2)
    play.now = 25.0
    play.probe()
    play.probe()
    assert play.report is not None and play.report.load_time_s == 15.0
    play.now = 100.0
    play.state("backoff", 2, "exit 1")
    play.state("starting", 3)
    assert play.report.load_time_s == 0.0
    play.now = 104.0
    play.probe()
    play.probe()
    assert play.report is not None and play.report.load_time_s == 4.0


def test_a_timer_that_fires_early_is_set_again() -> None:
    play = running()
    early = play.wake - 0.001
    assert play.sleep_until(early) == [Wake(5.0)]
    assert play.sleep_until(5.0) == [Probe()]


def test_the_same_deadline_is_not_said_twice() -> None:
    play = running()
    assert play.refuse() and play.probe()
    assert play.state("ready") == []


@pytest.mark.parametrize("state", ["ready", "unhealthy"])
def test_a_hang_is_seen_by_an_adapter_that_was_started_meanwhile(state: str) -> None:
    """It never saw a good probe itself, but was told that there had been one."""
    play = Play(stall_timeout_s=60.0, ready_log=True)
    play.now = 100.0
    play.state(state)
    assert play.backend == BackendDown("the model server was not looked at yet")
    for _ in range(2):
        play.probe(ok=False, text="no answer")
    assert play.report is not None and "does not answer: no answer" in play.report.error
    assert play.backend == BackendDown("the model server does not answer: no answer")
    while play.verdict is None or not play.verdict.wedged:
        assert play.now <= 100.0 + 60.0 + 5.0
        play.probe(ok=False, text="no answer")
    assert play.now >= 160.0


@pytest.mark.parametrize(
    ("state", "started_at", "load_time_s"),
    [
        ("starting", 3.0, 7.0),  # since the process was started, whoever watches since when
        ("starting", 0.0, 2.0),
        ("external", 3.0, 7.0),
        ("ready", 3.0, 2.0),  # it had loaded before this adapter lived; how long is not known
    ],
)
def test_how_long_it_took_to_load(state: str, started_at: float, load_time_s: float) -> None:
    play = Play()
    play.now = 8.0
    play.state(state, started_at=started_at)
    play.now = 10.0
    play.probe()
    assert play.report is not None
    assert play.report.load_time_s == load_time_s


def test_what_a_lifecycle_says_is_not_called_a_log() -> None:
    play = running()
    text = "the lifecycle of worker.py failed: no GPU"
    play.take(play.machine.log_match(1, "error", LIFECYCLE, text, play.now))
    assert play.error == text
