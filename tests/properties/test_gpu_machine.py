"""Searches for orders of events that make the watch of the GPUs break one of its laws."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backend_adapter.gpu_gate import GpuGate
from backend_adapter.gpu_judge import SETTLE_S, GpuJudge
from backend_adapter.gpu_reader_life import ReaderLife
from backend_adapter.gpu_words import Hit, Reading, StartReader
from backend_adapter.readiness import EXTERNAL, Readiness
from backend_adapter.readiness_words import (
    BackendDown,
    BackendFailed,
    BackendUp,
    Probe,
    Report,
    StartBenchmark,
    StopBenchmark,
    Verdict,
    Wake,
)

STALL_S = 20.0
RUNNING = ("starting", "ready", "unhealthy", EXTERNAL)
GPUS = (0, 1)
ERRORS = st.sampled_from(["lost", "unknown"])


class Gpus(RuleBasedStateMachine):
    """Plays two GPUs, the reader of NVML and a model server; the real judgement of the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.judge = GpuJudge()
        self.gate = GpuGate(STALL_S)
        self.readiness = Readiness(
            ready_log=False, benchmark=False, probe_every_s=5.0, probe_failures=2,
            stall_timeout_s=STALL_S, now=self.now,
        )  # fmt: skip
        self.state, self.generation = "waiting", 0
        self.probing = False
        self.words: dict[int, str] = {}  #: what NVML says of each device now
        self.broken: dict[int, float] = {}  #: by an Xid, and when
        self.ecc = dict.fromkeys(GPUS, 0)
        self.read = False
        # What the hands were told last.
        self.backend: Any = BackendDown("")
        self.report: Report | None = None
        self.verdict: Verdict | None = None

    # ------------------------------------------------------------------ the hands

    def do(self, commands: Any) -> None:
        for command in commands:
            match command:
                case BackendUp() | BackendDown() | BackendFailed():
                    assert command != self.backend, "said twice"
                    self.backend = command
                case Verdict():
                    if command.wedged:
                        self.check_restart()
                    self.verdict = command
                case Report():
                    assert command != self.report, "said twice"
                    self.report = command
                case Probe():
                    self.probing = True
                case StartBenchmark() | StopBenchmark() | Wake():
                    pass

    def check_restart(self) -> None:
        assert self.state != EXTERNAL, "nobody could start it again"
        assert not self.judge.fault, "it would not help"

    def tell(self, hits: list[Any]) -> None:
        self.do(self.gate.fault(self.judge.fault))
        for each in hits:
            if isinstance(each, Hit):
                self.do(self.gate.hit(each.text, self.now))

    # ------------------------------------------------------------------ the world

    @initialize(state=st.sampled_from(["starting", EXTERNAL]))
    def all_is_well(self, state: str) -> None:
        self.it_starts(state)
        self.a_probe_ends(True)
        self.they_are_read({}, False)

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.gate.passes(self.readiness.tick(self.now)))

    @precondition(lambda self: self.state not in RUNNING)
    @rule(state=st.sampled_from(["starting", EXTERNAL]))
    def it_starts(self, state: str) -> None:
        if state != EXTERNAL:
            self.generation += 1
        self.move(state)

    @precondition(lambda self: self.state in RUNNING)
    @rule(state=st.sampled_from(["backoff", "failed", "stopping"]))
    def it_ends(self, state: str) -> None:
        self.move(state)

    def move(self, state: str) -> None:
        self.state, self.verdict = state, None  # a judgement of what is gone is void
        self.gate.model_state(state, self.generation)
        events = self.readiness.model_state(state, self.generation, "exit 1", self.now)
        self.do(self.gate.passes(events))

    @precondition(lambda self: self.probing)
    @rule(ok=st.booleans())
    def a_probe_ends(self, ok: bool) -> None:
        self.probing = False
        self.do(self.gate.passes(self.readiness.probe_result(ok, "no answer", self.now)))

    @rule(words=st.dictionaries(st.sampled_from(GPUS), ERRORS, max_size=1), says=st.booleans())
    def they_are_read(self, words: dict[int, str], says: bool) -> None:
        """``says``: the driver tells that nothing is to be done."""
        self.words, self.read = words, True
        for index, at in list(self.broken.items()):
            if says and index not in words and self.now - at >= SETTLE_S:
                del self.broken[index]
        readings = [
            Reading(
                index=index, name="H100", uuid=f"uuid-{index}", error=words.get(index, ""),
                fatal=words.get(index) == "lost", ecc=self.ecc[index], recovery=0 if says else -1,
            )
            for index in GPUS
        ]  # fmt: skip
        self.tell(self.judge.seen(readings, self.now))

    @rule(gpu=st.sampled_from(GPUS))
    def an_error_is_counted(self, gpu: int) -> None:
        self.ecc[gpu] += 1

    @precondition(lambda self: self.read)
    @rule(gpu=st.sampled_from(GPUS), code=st.sampled_from([13, 79, 48, 74, 94]))
    def an_xid_comes(self, gpu: int, code: int) -> None:
        if code == 79:
            self.broken[gpu] = self.now
        self.tell(self.judge.xid(f"uuid-{gpu}", code, self.now))
        self.the_hands_look(1, 0.0)

    @rule(running=st.integers(0, 2), ago=st.sampled_from([0.0, 5.0, STALL_S, 50.0]))
    def the_hands_look(self, running: int, ago: float) -> None:
        pending, before = self.gate.pending, self.verdict
        self.do(self.gate.look(running, self.now - ago, self.now))
        restarts = self.verdict is not before and self.verdict is not None and self.verdict.wedged
        if restarts:
            assert pending and not self.judge.fault
            assert running == 0 or ago >= STALL_S, "what runs and makes progress was not harmed"

    # ------------------------------------------------------------------ the laws

    @invariant()
    def a_fault_is_told_as_long_as_it_lasts(self) -> None:
        wrong = set(self.words) | set(self.broken)
        assert bool(self.judge.fault) == bool(wrong)
        for index in wrong:
            assert f"GPU {index} (H100): " in self.judge.fault

    @invariant()
    def trouble_means_not_ready(self) -> None:
        if self.gate.trouble:
            assert not isinstance(self.backend, BackendUp)
            assert self.report is None or not self.report.ready
            assert self.report is None or self.gate.trouble in self.report.error
            assert self.verdict is None or not self.verdict.ready

    @invariant()
    def without_trouble_the_judgement_stands(self) -> None:
        if not self.gate.trouble and self.readiness._said_report is not None:
            assert self.report == self.readiness._said_report
            assert self.backend == self.readiness._said_backend


class ReaderLives(RuleBasedStateMachine):
    """Plays the process that asks NVML."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.life = ReaderLife(5.0)
        self.running = 0
        self.heard_at = 0.0
        self.do(self.life.start(self.now))

    def do(self, commands: Any) -> None:
        for command in commands:
            if isinstance(command, StartReader):
                self.running += 1

    @rule(seconds=st.integers(1, 120))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.do(self.life.tick(self.now))

    @precondition(lambda self: self.running)
    @rule()
    def it_reads(self) -> None:
        self.heard_at = self.now
        self.life.heard(self.now)
        assert not self.life.silent and not self.life.gone

    @precondition(lambda self: self.running)
    @rule(absent=st.booleans())
    def it_gives_up(self, absent: bool) -> None:
        self.life.gave_up("Driver Not Loaded", absent)
        self.running -= 1
        self.life.ended("exit 0", self.now)
        assert not self.life.silent and self.life.gone

    @precondition(lambda self: self.running)
    @rule()
    def it_dies(self) -> None:
        self.running -= 1
        self.life.ended("signal 11", self.now)

    @invariant()
    def there_is_one_at_most(self) -> None:
        assert self.running in (0, 1)

    @invariant()
    def silence_is_told(self) -> None:
        if self.running and self.now - self.heard_at < 10.0:
            assert not self.life.silent


Gpus.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestGpus = Gpus.TestCase
ReaderLives.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestReaderLives = ReaderLives.TestCase
