"""Searches for orders of events that make the model server's judgement break one of its laws."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from backend_adapter.readiness import EXTERNAL, Readiness
from backend_adapter.readiness_words import (
    Backend,
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
from supervisor.messages import ChildState

PROBE_EVERY_S = 5.0
FAILURES = 2
STALL_S = 20.0
DEAD = ("waiting", "stopping", "backoff", "stopped", "failed")
ALIVE = ("starting", "ready", "unhealthy", EXTERNAL)


class ModelServer(RuleBasedStateMachine):
    """Plays the world, and remembers of it what the laws are about."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.state = "waiting"
        self.generation = 0
        # The hands.
        self.probe_began: int | None = None  #: the era in which the probe under way began
        self.attempt = 0  #: the benchmark under way
        self.wake = 0.0
        # The world, as the laws see it. An era ends when a process starts or ends.
        self.era = 0
        self.line_seen = False
        self.good_at: float | None = None
        self.bad_probes = 0
        self.refused = False
        self.progress_at = 0.0
        self.measured = False
        self.error_line = False
        # What was said last.
        self.backend: Backend | None = None
        self.verdict: Verdict | None = None
        self.report: Report | None = None

    @initialize(ready_log=st.booleans(), benchmark=st.booleans())
    def begin(self, ready_log: bool, benchmark: bool) -> None:
        self.ready_log = ready_log
        self.measured = not benchmark
        self.machine = Readiness(
            ready_log=ready_log,
            benchmark=benchmark,
            probe_every_s=PROBE_EVERY_S,
            probe_failures=FAILURES,
            stall_timeout_s=STALL_S,
            now=self.now,
        )

    # ---------------------------------------------------------------------------- events

    @rule(state=st.sampled_from(DEAD + ALIVE), step=st.integers(-1, 2), reason=st.text(max_size=3))
    def change_state(self, state: str, step: int, reason: str) -> None:
        generation = self.generation + step
        if step >= 0:
            begins = state in ALIVE and (step > 0 or self.state not in ALIVE)
            self.state = state
            self.generation = generation
            if begins:
                self.line_seen = False
                self.good_at = None
                self.bad_probes = 0
                self.refused = False
                self.verdict = None
            if begins or state not in ALIVE:
                self.era += 1
            if state in ("ready", "unhealthy"):
                self.line_seen = True
        said = self.machine.model_state(state, generation, reason, self.now)
        assert step >= 0 or said == []
        self.carry_out(said)

    @rule(step=st.integers(-1, 0), kind=st.sampled_from(["ready", "error"]), line=st.text())
    def log_line(self, step: int, kind: str, line: str) -> None:
        if step == 0:
            self.line_seen = self.line_seen or kind == "ready"
            self.error_line = kind == "error"
        self.carry_out(
            self.machine.log_match(self.generation + step, kind, "pattern", line, self.now)
        )

    @precondition(lambda self: self.probe_began is not None)
    @rule(ok=st.booleans())
    def answer_probe(self, ok: bool) -> None:
        counts = self.probe_began == self.era
        self.probe_began = None
        if counts and ok:
            self.good_at = self.now
            self.bad_probes = 0
            self.refused = False
        elif counts:
            self.bad_probes += 1
        self.carry_out(self.machine.probe_result(ok, "bad", self.now))

    @rule()
    def refuse_connection(self) -> None:
        if self.healthy() and not self.refused:
            self.refused = True
            self.era += 1
        self.carry_out(self.machine.connection_refused(self.now))

    @rule(ok=st.booleans(), late=st.booleans())
    def end_benchmark(self, ok: bool, late: bool) -> None:
        attempt = self.attempt
        if late or not attempt:
            attempt = -1
        else:
            self.attempt = 0
            self.measured = self.measured or ok
        if ok:
            said = self.machine.benchmark_done(attempt, self.now)
        else:
            said = self.machine.benchmark_failed(attempt, "no success", self.now)
        assert attempt > 0 or said == []
        self.carry_out(said)

    @rule()
    def make_progress(self) -> None:
        self.progress_at = self.now
        self.machine.progress(self.now)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.25, 1.0, PROBE_EVERY_S, STALL_S]))
    def pass_time(self, seconds: float) -> None:
        """No further than the timer: the hands never miss it by much."""
        self.now += seconds
        if self.now >= self.wake:
            self.carry_out(self.machine.tick(self.now))

    @rule()
    def fire_the_timer_early(self) -> None:
        self.wake = math.inf
        self.carry_out(self.machine.tick(self.now))

    # ---------------------------------------------------- longer stories, so that they happen

    @precondition(lambda self: self.state in ALIVE)
    @rule()
    def get_well(self) -> None:
        self.log_line(0, "ready", "loaded")
        for _ in range(3):
            if self.probe_began is None:
                self.pass_time(PROBE_EVERY_S)
            if self.probe_began is not None:
                self.answer_probe(True)
            if self.attempt:
                self.end_benchmark(True, False)

    @precondition(lambda self: self.state in ALIVE)
    @rule(seconds=st.sampled_from([PROBE_EVERY_S, STALL_S, 2 * STALL_S]), moves=st.booleans())
    def fail_probes(self, seconds: float, moves: bool) -> None:
        self.get_well()
        until = self.now + seconds
        while self.now < until:
            self.pass_time(1.0)
            if self.probe_began is not None:
                self.answer_probe(False)
            if moves:
                self.make_progress()

    @precondition(lambda self: self.state in ALIVE)
    @rule(ok=st.booleans())
    def refuse_during_a_probe(self, ok: bool) -> None:
        self.get_well()
        self.pass_time(PROBE_EVERY_S)
        self.refuse_connection()
        self.answer_probe(ok)

    # ------------------------------------------------------------------------------ laws

    def healthy(self) -> bool:
        return (
            self.state in ALIVE
            and (self.line_seen or not self.ready_log)
            and self.good_at is not None
            and self.bad_probes < FAILURES
        )

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Probe():
                    assert self.probe_began is None, "one probe at a time"
                    assert self.state in ALIVE
                    self.probe_began = self.era
                case StartBenchmark(attempt):
                    assert self.attempt == 0, "one benchmark at a time"
                    assert self.healthy() and not self.measured
                    self.attempt = attempt
                case StopBenchmark():
                    assert self.attempt, "there was one"
                    self.attempt = 0
                case BackendUp() | BackendDown() | BackendFailed():
                    assert command != self.backend, "said only when it changes"
                    self.backend = command
                case Verdict():
                    assert command != self.verdict
                    self.verdict = command
                    self.check_verdict(command)
                case Report():
                    assert command != self.report
                    self.report = command
                case Wake(at):
                    assert at > self.now
                    self.wake = at

    def check_verdict(self, verdict: Verdict) -> None:
        assert verdict.generation == self.generation
        assert verdict.healthy == self.healthy()
        assert verdict.ready == (verdict.healthy and self.measured)
        assert bool(verdict.reason) != verdict.ready
        if verdict.wedged:
            assert self.state != EXTERNAL and self.bad_probes >= FAILURES
            assert self.good_at is not None
            assert self.now - max(self.good_at, self.progress_at) >= STALL_S

    @invariant()
    def requests_are_sent_only_when_it_is_ready(self) -> None:
        ready = self.healthy() and self.measured
        assert isinstance(self.backend, BackendUp) == (ready and not self.refused)
        if self.backend is not None:
            assert isinstance(self.backend, BackendFailed) == (self.state == ChildState.FAILED)

    @invariant()
    def the_report_is_true(self) -> None:
        if self.report is None:
            assert not (self.healthy() and self.measured)
            return
        assert self.report.ready == (self.healthy() and self.measured)
        assert self.report.generation == self.generation
        if self.state == ChildState.FAILED or (self.good_at is not None and not self.healthy()):
            assert self.report.error or self.state not in (*ALIVE, ChildState.FAILED)
        if self.report.ready and not self.error_line and self.now == self.good_at:
            assert self.report.error == ""

    @invariant()
    def somebody_looks_again_soon(self) -> None:
        if self.state in ALIVE and (self.line_seen or not self.ready_log):
            assert self.probe_began is not None or self.wake <= self.now + PROBE_EVERY_S

    @invariant()
    def nothing_is_measured_that_is_dead(self) -> None:
        assert not self.attempt or self.state in ALIVE

    def teardown(self) -> None:
        """From wherever it stands, a model server that is well becomes ready."""
        if not hasattr(self, "machine"):
            return
        self.change_state("starting", 1, "")
        self.log_line(0, "ready", "loaded")
        for _ in range(10):
            if self.probe_began is not None:
                self.answer_probe(True)
            if self.attempt:
                self.end_benchmark(True, False)
            self.pass_time(PROBE_EVERY_S)
        assert isinstance(self.backend, BackendUp)
        assert self.report is not None and self.report.ready and self.report.error == ""
        assert self.verdict is not None and self.verdict.ready


ModelServer.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestModelServer = ModelServer.TestCase
