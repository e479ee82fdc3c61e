"""A model server that takes its time: a quarter of an hour on the test's clock, and a short while.

The first plays the two rooms that judge it against each other, as the hands do (the supervisor's
``Life``, the adapter's ``Readiness``), with the settings that a worker has when nobody sets any.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from backend_adapter import readiness_words as words
from backend_adapter.readiness import Readiness
from supervisor import lifecycle
from supervisor.messages import ChildState
from supervisor.ports import free_port
from supervisor.restart import Policy
from supervisor.settings import Settings
from supervisor.timeline import PROGRESS_S
from tests.chaos.deaths import ROUTES, reports, unary
from tests.chaos.table import row
from tests.kit.clock import FakeClock, FakeTimer
from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end
from tests.unit.test_timeline import Output, Run


class SlowStart:
    """One start; ``loaded`` says whether probes are answered."""

    def __init__(self) -> None:
        settings = Settings()
        restart, model = settings.restart, settings.model
        policy = Policy(
            restart.budget, restart.window_s, restart.first_delay_s, restart.max_delay_s,
            restart.stable_s, model.start_timeout_s, model.stop_timeout_s,
        )  # fmt: skip
        self.start_timeout_s = model.start_timeout_s
        self.clock = FakeClock()
        self.loaded = False
        self.probes = 0
        self.deadlines: list[float] = []  #: start deadlines that were set
        self.kills: list[str] = []
        self.spawned: list[int] = []  #: generations, in their order
        self.report: words.Report | None = None
        self.life = lifecycle.Life("model", policy, self.clock.now)
        self._timers: dict[lifecycle.Timer, FakeTimer] = {}
        self._wake: FakeTimer | None = None
        self._judge = Readiness(
            ready_log=False,
            benchmark=False,
            probe_every_s=model.probe_every_s,
            probe_failures=model.probe_failures,
            stall_timeout_s=model.stall_timeout_s,
            now=self.clock.now,
        )
        self.feed(lifecycle.Start())

    def feed(self, event: lifecycle.Event) -> None:
        """The supervisor's side."""
        answers = {
            lifecycle.Timer.START: lifecycle.StartDeadline(),
            lifecycle.Timer.STOP: lifecycle.StopDeadline(),
            lifecycle.Timer.BACKOFF: lifecycle.TimerFired(),
        }
        for command in self.life.handle(event, self.clock.now, 0.5):
            match command:
                case lifecycle.Spawn(generation):
                    self.spawned.append(generation)
                    self.feed(lifecycle.Spawned(4710 + generation))
                case lifecycle.SetTimer(kind, delay_s):
                    self._timers[kind] = self.clock.call_later(
                        delay_s, lambda kind=kind: self.feed(answers[kind])
                    )
                    if kind is lifecycle.Timer.START:
                        self.deadlines.append(delay_s)
                case lifecycle.CancelTimer(kind):
                    self._timers.pop(kind).cancel()
                case lifecycle.Kill(reason):
                    self.kills.append(reason)
                    exited = lifecycle.Exited("killed by signal 9")
                    self.clock.call_later(0.1, partial(self.feed, exited))
                case lifecycle.Sweep():
                    self.feed(lifecycle.Swept())
                case lifecycle.Announce(state, reason):
                    self.take(
                        self._judge.model_state(
                            state, self.life.generation, reason, self.clock.now,
                            started_at=self.life.started_at,
                        )
                    )  # fmt: skip

    def take(self, commands: list[words.Command]) -> None:
        """The adapter's side."""
        for command in commands:
            match command:
                case words.Probe():
                    self.probes += 1
                    self.clock.call_later(0.001, self._answer)
                case words.Wake(at):
                    if self._wake is not None:
                        self._wake.cancel()
                    self._wake = self.clock.call_at(
                        at, lambda: self.take(self._judge.tick(self.clock.now))
                    )
                case words.Verdict(wedged=True, reason=reason):
                    self.feed(lifecycle.Hung(reason))
                case words.Verdict(healthy=True):
                    self.feed(lifecycle.BecameReady())
                case words.Verdict(reason=reason):
                    self.feed(lifecycle.BecameUnhealthy(reason))
                case words.Report():
                    self.report = command

    def _answer(self) -> None:
        text = "" if self.loaded else "connection refused"
        self.take(self._judge.probe_result(self.loaded, text, self.clock.now))


@row(
    7,
    "the model server takes a quarter of an hour to load",
    seen="`starting` all the while; then `ready`, with a load time of 900 s in the report",
    does="sets one deadline for the whole start (`model.start_timeout_s`, an hour) and kills "
    "nothing before it, however many probes fail",
    on="a simulated clock, no processes",
)
def test_row_07_fifteen_minutes() -> None:
    start = SlowStart()
    for _ in range(15):
        start.clock.advance(60.0)
        assert start.life.state is ChildState.STARTING
    assert start.probes > 1000
    assert start.deadlines == [start.start_timeout_s] and not start.kills
    start.loaded = True
    start.clock.advance(1.0)
    assert start.life.state is ChildState.READY and start.life.restarts == 0
    assert start.report is not None and start.report.ready and not start.report.error
    assert 900 <= start.report.load_time_s <= 901
    start.clock.advance(2 * start.start_timeout_s)
    assert start.life.state is ChildState.READY and not start.kills


@row(
    7,
    "the model server prints little while it loads, or nothing",
    seen="every 10 s a line with its latest output, what is still waited for, how the disk fills "
    "and what the network brings",
    does="compares the machine's figures with those of 10 s ago",
    on="a simulated clock, no processes",
)
def test_row_07_what_grows_is_said_meanwhile() -> None:
    run = Run()
    run.feed("model", lifecycle.Start(), lifecycle.Spawned(7))
    run.members["model"].capture = Output()
    run.members["model"].ring.extend(["fetching", " "])
    run.grown = "disk +1.5 GB, network 85 MB/s"
    run.clock.advance(PROGRESS_S)
    assert run.screen.said(r"model: fetching   \[disk \+1.5 GB, network 85 MB/s\]$") == 1
    run.model_ready = True
    run.clock.advance(PROGRESS_S)
    assert run.screen.said("disk") == 1


@row(
    7,
    "the model server never finishes loading",
    seen="`not ready within 3600 s`",
    does="kills it at that deadline, and starts it again like one that crashed",
    on="a simulated clock, no processes",
)
def test_row_07_never() -> None:
    start = SlowStart()
    start.clock.advance(start.start_timeout_s - 1.0)
    assert start.life.state is ChildState.STARTING and not start.kills
    assert start.spawned == [1]
    start.clock.advance(2.0)
    assert start.kills == ["not ready within 3600 s"]
    assert start.spawned == [1, 2] and start.life.pid == 4712 and start.life.restarts == 1
    assert start.life.state is ChildState.STARTING
    assert start.deadlines == [start.start_timeout_s] * 2, "the next one has as long"
    start.loaded = True
    start.clock.advance(60.0)
    assert start.life.state is ChildState.READY and len(start.kills) == 1
    assert start.report is not None and start.report.ready and not start.report.error


@row(
    7,
    "a model server loads while requests come",
    seen="they wait; `status` names what is waited for and shows its latest line; the engine "
    "hears of no error",
    does="listens to its output and asks its health path; the first good answer makes it ready",
)
def test_row_07_while_requests_come(tmp_path: Path) -> None:
    async def scene(worker: Worker) -> list[Outcome]:
        async with Load(worker.url, {}) as load:
            for number in range(5):
                load.start("/generate", unary(f"early-{number}", 5))
            await asyncio.to_thread(wait_until, lambda: waiting(worker) == 5, 60.0, "all to wait")
            assert not any(task.done() for task in load.tasks)
            loaded.touch()
            return list(await asyncio.gather(*load.tasks))

    def waiting(worker: Worker) -> Any:
        return worker.status()["queue"].get("waiting", 0)

    def told() -> bool:
        status = worker.status()
        states = {member["name"]: member["state"] for member in status["members"]}
        if states.get("ingress-0") != "ready" or states.get("engine") != "ready":
            return False
        assert states["model"] == "starting"
        return said in status["reason"]

    loaded, port = tmp_path / "loaded", free_port("127.0.0.1")
    script = (
        'echo "INFO Loading weights 40%"; until [ -e loaded ]; do sleep 0.05; done;'
        f' exec "{sys.executable}" -m supervisor.demo.model --port {port}'
    )
    toml = (
        f"[model]\ncommand = {json.dumps(['/bin/sh', '-c', script])}\n"
        f'cwd = "{tmp_path}"\nurl = "http://127.0.0.1:{port}"\nhealth = "/health"\n'
        'ready_log = ["startup complete"]\n'
    )
    said = (
        "the model server is not ready: waiting for a line with 'startup complete' in its output;"
        " its output: INFO Loading weights 40%"
    )
    settings = ("auth.mode=none",)
    worker = Worker(tmp_path, toml=toml, routes=ROUTES, settings=settings).start()
    try:
        wait_until(told, 60.0, "word of its progress")
        worker.facts()
        assert {outcome.kind for outcome in asyncio.run(scene(worker))} == {"ok"}
        assert worker.members()["model"]["restarts"] == 0
        worker.wait_ready()
        wait_until(lambda: any(report["loadtime"] for report in reports(worker)), what="a report")
        assert not any(report["error_msg"] for report in reports(worker))
    finally:
        end(worker)
