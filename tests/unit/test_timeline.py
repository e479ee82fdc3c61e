"""What the person sees while the worker starts, and of what changes later."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from supervisor import lifecycle
from supervisor.logs import Ring
from supervisor.messages import ChildState, ModelVerdict
from supervisor.plan import Plan, make
from supervisor.process import Supervisor
from supervisor.restart import Policy
from supervisor.screen import Part, Terminal, Tone
from supervisor.settings import (
    BenchmarkSettings,
    EngineSettings,
    ModelSettings,
    RouteSettings,
    Settings,
    Workload,
)
from supervisor.timeline import MAX_QUOTE, PROGRESS_S, Timeline
from tests.kit.clock import FakeClock, FakeTimer

POLICY = Policy(10, 600, 0.25, 30, 60, 3600, 10)
SETTINGS = Settings(
    engine=EngineSettings(addresses=["http://engine.example"], token="hunter2hunter2"),
    model=ModelSettings(url="http://127.0.0.1:18000", command=["model"]),
    benchmark=BenchmarkSettings(route="/generate"),
    route=[RouteSettings(path="/generate", workload=Workload(field="max_tokens"))],
)


class Loop:
    """The two things that the timeline wants of a loop."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def time(self) -> float:
        return self._clock.now

    def call_later(self, delay_s: float, callback: Any, *args: Any) -> FakeTimer:
        return self._clock.call_later(delay_s, lambda: callback(*args))


@dataclass
class Output:
    begins: int = 0


@dataclass
class Child:
    """A member with a real life and no process."""

    name: str
    life: lifecycle.Life
    capture: Output | None = None
    last_exit: str = ""
    detail: str = ""
    ring: Ring = field(default_factory=Ring)
    gauges: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> ChildState:
        return self.life.state


class Said:
    """A screen that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.row: list[str] = []
        self.finished = 0

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        self.lines.append(text)

    def show(self, parts: list[Part]) -> None:
        self.row = [part.text for part in parts]

    def finish(self) -> None:
        self.finished += 1

    def said(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.lines)


class Run:
    """Stands for the supervisor; ``feed`` moves a member's real life and tells the timeline."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.clock = FakeClock()
        self.loop = Loop(self.clock)
        self.plan: Plan = make(settings, embedded=False)
        self.started_at = self.clock.now
        names = ("model", "backend_adapter", "ingress-0", "reporter")
        self.members = {name: Child(name, lifecycle.Life(name, POLICY)) for name in names}
        self.model_verdict: ModelVerdict | None = None
        self.model_ready = self.stopping = self.engine_knows = False
        self.stop_reason = "drain asked for"
        self.screen = Said()
        self.grown = ""
        self.timeline = Timeline(self.screen, lambda: self.grown)

    def mask(self, text: str) -> str:
        return text.replace("hunter2hunter2", "***")

    @property
    def serving(self) -> bool:
        lacks_key = any(child.gauges.get("lacks_key") for child in self.members.values())
        return (self.model_ready and not lacks_key) and all(
            child.state is ChildState.READY for child in self.members.values()
        )

    @property
    def ready(self) -> bool:
        return self.serving and self.engine_knows

    def tell(self, name: str = "reporter") -> None:
        self.timeline(cast(Supervisor, self), cast(Any, self.members[name]))

    def feed(self, name: str, *events: lifecycle.Event) -> None:
        for event in events:
            before = self.members[name].life
            if any(
                isinstance(command, lifecycle.Announce)
                for command in before.handle(event, self.clock.now, 0.5)
            ):
                self.tell(name)

    def verdict(self, **facts: Any) -> None:
        self.model_verdict = ModelVerdict(1, **facts)
        self.model_ready = self.model_verdict.ready
        self.tell("model")

    def get_ready(self) -> None:
        for name in self.members:
            self.feed(name, lifecycle.Start(), lifecycle.Spawned(7), lifecycle.BecameReady())
        self.clock.advance(1.9)
        self.verdict(healthy=True, ready=True, max_perf=212.3)
        self.engine_knows = True
        self.tell()


def test_a_good_start_is_one_row_and_what_to_type_next() -> None:
    run = Run()
    run.get_ready()
    assert run.screen.row == [
        "✓ backend_adapter 0.0 s",
        "✓ ingress 0.0 s",
        "✓ reporter 0.0 s",
        "✓ model loaded 1.9 s",
        "✓ benchmark 212 tok/s",
        "● ready in 1.9 s",
    ]
    assert "http://engine.example" in run.screen.lines[0]
    assert run.screen.said("python -m supervisor status") == 1
    assert run.screen.said("supervisor ask") == 0, "the engine is remote"
    said = len(run.screen.lines)
    run.tell()
    run.clock.advance(100)
    assert len(run.screen.lines) == said, "quiet afterwards"


def test_ready_is_said_only_when_the_engine_knows() -> None:
    run = Run()
    run.get_ready()
    assert run.screen.row[-1].startswith("● ready")
    other = Run()
    for name in other.members:
        other.feed(name, lifecycle.Start(), lifecycle.Spawned(7), lifecycle.BecameReady())
    other.verdict(healthy=True, ready=True)
    assert not any(part.startswith("●") for part in other.screen.row)


def test_a_model_that_loads_long_shows_its_latest_line_masked_every_ten_seconds() -> None:
    run = Run()
    run.feed("model", lifecycle.Start(), lifecycle.Spawned(7))
    model = run.members["model"]
    model.ring.extend(["of the process before"])
    model.capture = Output(begins=1)
    model.ring.extend(["old", "Loading weights 40% hunter2hunter2", "  "])
    run.clock.advance(PROGRESS_S * 3 + 1)
    assert run.screen.said("process before") == 0
    assert run.screen.said(r"model: Loading weights 40% \*\*\*") == 3
    assert run.screen.said("hunter2") == 0


def test_what_a_model_that_says_nothing_waits_for_is_named() -> None:
    run = Run()
    for name in run.members:
        run.feed(name, lifecycle.Start(), lifecycle.Spawned(7))
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("waiting for backend_adapter, ingress-0, reporter$") == 1
    for name in ("backend_adapter", "ingress-0", "reporter"):
        run.feed(name, lifecycle.BecameReady())
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("waiting for the model server$") == 1, "no word of the adapter's yet"
    line = "waiting for a line with 'up' in /tmp/hunter2hunter2.log (no such file yet)"
    run.members["backend_adapter"].gauges["model_awaits"] = line
    run.clock.advance(PROGRESS_S)
    assert run.screen.said(r"waiting for a line with 'up' in /tmp/\*\*\*.log \(no such file") == 1
    run.feed("model", lifecycle.BecameUnhealthy("GET /health answered 500"))
    run.members["model"].life.reason = "exit 3"
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("no such file yet.; before that: exit 3") == 1
    assert run.screen.said("engine to take") == 0
    run.feed("model", lifecycle.BecameReady())
    run.verdict(healthy=True, ready=True)
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("waiting for the engine to take a report") == 1


def test_a_missing_key_is_named_before_and_after_the_start() -> None:
    run = Run()
    for name in run.members:
        run.feed(name, lifecycle.Start(), lifecycle.Spawned(7), lifecycle.BecameReady())
    ingress = run.members["ingress-0"]
    ingress.gauges["lacks_key"] = True
    run.verdict(healthy=True, ready=True)
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("waiting for the engine's public key$") == 1
    ingress.gauges["lacks_key"] = False
    run.engine_knows = True
    run.tell()
    assert run.screen.row[-1].startswith("● ready")
    ingress.gauges["lacks_key"] = True
    run.tell("ingress-0")
    assert run.screen.said("○ not ready: no public key from the engine") == 1


def test_a_log_that_stands_still_does_not_hide_what_is_missing() -> None:
    run = Run()
    for name in run.members:
        run.feed(name, lifecycle.Start(), lifecycle.Spawned(7))
        if name != "model":
            run.feed(name, lifecycle.BecameReady())
    run.members["backend_adapter"].gauges["model_awaits"] = "waiting for a line with 'up'"
    model = run.members["model"]
    model.capture = Output()
    model.ring.extend(["loading"])
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("model: loading$") == 1
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("model: loading   .waiting for a line with 'up'.$") == 1


def test_a_death_is_said_once_and_so_is_the_return() -> None:
    run = Run()
    run.get_ready()
    run.model_ready = False
    run.feed("model", lifecycle.Exited("killed by signal 9"))
    run.tell("model")
    assert run.screen.said("✗ model: killed by signal 9; starting it again") == 1
    assert run.screen.said("○ not ready") == 1
    run.clock.advance(2)
    run.feed("model", lifecycle.Swept(), lifecycle.TimerFired(), lifecycle.Spawned(8))
    run.feed("model", lifecycle.BecameReady())
    run.verdict(healthy=True, ready=True, max_perf=212.3)
    assert run.screen.said(r"✓ model is back after 2.0 s") == 1
    assert run.screen.said("ready again") == 1


def test_what_a_model_server_said_last_is_told_with_its_death_once_and_not_at_any_length() -> None:
    run = Run()
    run.get_ready()
    model = run.members["model"]
    model.capture = Output()
    model.ring.extend(["12:00 no such file: weights " + "x" * 1000, ""])
    run.feed("model", lifecycle.Exited("exit 2"))
    said = r"✗ model: exit 2 \(its last line: 12:00 no such file: weights x+\); starting it again"
    assert run.screen.said(said) == 1
    model.ring.extend(["12:01 no such file"])
    run.tell("model")
    assert run.screen.said("✗ model") == 1
    assert max(map(len, run.screen.lines)) < 2 * MAX_QUOTE


def test_a_restart_that_was_asked_for_is_no_failure() -> None:
    run = Run()
    run.get_ready()
    run.feed("ingress-0", lifecycle.Restart(), lifecycle.Exited("exit 0"), lifecycle.Swept())
    assert run.screen.said("↻ ingress-0: restart asked for") == 1
    assert run.screen.said("✗") == 0
    run.feed("ingress-0", lifecycle.TimerFired(), lifecycle.Spawned(9), lifecycle.BecameReady())
    assert run.screen.said("✓ ingress-0 is back") == 1
    run.feed("ingress-0", lifecycle.Exited("exit 3"))
    assert run.screen.said("✗ ingress-0: exit 3") == 1


def test_giving_up_is_said() -> None:
    run = Run()
    gone = lifecycle.SpawnFailed("command not found: 'vllm'", permanent=True)
    run.feed("model", lifecycle.Start(), gone)
    assert run.screen.said("✗ model: command not found: 'vllm'; giving up on it") == 1


def test_stopping_is_said_once_and_nothing_after_it() -> None:
    run = Run()
    run.get_ready()
    run.stopping = True
    for name in run.members:
        run.feed(name, lifecycle.Stop(10), lifecycle.Exited("exit 0"), lifecycle.Swept())
    assert run.screen.said("■ stopping: drain asked for") == 1
    assert run.screen.said("✗|↻|○") == 0


@pytest.mark.parametrize("name", ["model", "backend_adapter", "ingress-0", "reporter"])
def test_any_order_of_events_is_borne(name: str) -> None:
    run = Run()
    run.verdict(healthy=False, ready=False, reason="no answer")
    run.tell(name)
    run.feed(name, lifecycle.Start(), lifecycle.Spawned(1), lifecycle.Hung("no heartbeat"))
    run.feed(name, lifecycle.Exited("killed by signal 9"), lifecycle.Stop(1))
    run.timeline.close()


# ----------------------------------------------------------------------------- the terminal


def _screen_of(written: list[str]) -> list[str]:
    """What a terminal shows after these writes: it knows two controls and no styles."""
    rows = [""]
    for text in "".join(part if part.endswith("\n") else part + "\n" for part in written).split(
        "\n"
    ):
        while (found := re.match(r"\x1b\[1A\x1b\[2K", text)) is not None:
            rows.pop()
            rows[-1] = ""
            text = text[found.end() :]
        rows[-1] = re.sub(r"\x1b\[[\d;]*m", "", text)
        rows.append("")
    return rows[:-2]


def test_lines_of_others_stay_above_the_live_row() -> None:
    written: list[str] = []
    terminal = Terminal(written.append, 80, color=True)
    terminal.say("first")
    terminal.show([Part("✓ one", Tone.GOOD)])
    terminal.write("a log line\n")
    terminal.show([Part("✓ one", Tone.GOOD), Part("✓ two", Tone.GOOD)])
    terminal.finish()
    terminal.say("after")
    assert _screen_of(written) == ["first", "a log line", " ✓ one   ✓ two", "after"]
    assert "\x1b[32m" in "".join(written)


def test_a_row_that_is_full_begins_a_new_one() -> None:
    written: list[str] = []
    terminal = Terminal(written.append, 20, color=False)
    parts = [Part("12345678")]
    terminal.show(parts)
    for text in ("12345678", "next", "more"):
        parts.append(Part(text))
        terminal.show(parts)
    assert _screen_of(written) == [" 12345678", " 12345678   next", " more"]


def test_without_colour_there_are_no_styles() -> None:
    written: list[str] = []
    terminal = Terminal(written.append, 80, color=False)
    terminal.say("bad", Tone.BAD)
    assert written == ["bad"]
