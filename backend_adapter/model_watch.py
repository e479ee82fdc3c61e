"""The hands of readiness: probes, benchmarks and timers of the one model server.

``readiness.py`` judges, ``measure.py`` measures, ``gpu_gate.py`` has a say where a GPU is in
trouble; here their commands are carried out, and what the supervisor and the reporter are to be
told is kept. It must not know the queue: whoever owns this
is told whether jobs may run, through ``Owner``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, Protocol, assert_never

from backend_adapter import readiness_words as words
from backend_adapter.capacity import Capacity
from backend_adapter.gpu_gate import GpuGate
from backend_adapter.gpu_watch import GpuWatch
from backend_adapter.measure import Measurement, fixed
from backend_adapter.model_client import ModelClient, ProbeResult
from backend_adapter.readiness import Readiness
from backend_adapter.samples import Samples
from reporter.messages import Gpu, ModelReport
from supervisor.child import Runtime
from supervisor.messages import ChildState, LogMatch, ModelState, ModelVerdict

#: Patterns that are named to people.
MAX_PATTERNS = 3
_log = logging.getLogger("backend_adapter")


class Owner(Protocol):
    """What the watch needs of the process around it."""

    def backend_up(self) -> None:
        """Jobs may run."""

    def backend_down(self, reason: str) -> None:
        """Jobs must wait."""

    def backend_failed(self, reason: str) -> None:
        """Jobs need not wait."""

    def measured(self, max_perf: float) -> None:
        """A benchmark has just been made."""

    def capacity_changed(self) -> None:
        """A benchmark, this one or that of an earlier life, said how much it manages."""

    def standing_changed(self) -> None:
        """``report`` says something new."""


class ModelWatch:
    """Watches the model server that the settings name.

    ``samples``: makes the benchmark's payloads where a worker.py does. ``hosted``: reaches the
    functions of a worker.py that stand in for a model server.
    """

    def __init__(
        self,
        runtime: Runtime,
        client: ModelClient,
        capacity: Capacity,
        owner: Owner,
        *,
        samples: Samples | None = None,
        hosted: ModelClient | None = None,
    ) -> None:
        settings = runtime.settings
        model = settings.model
        self._runtime = runtime
        self._client = client
        self._samples = samples
        self._hosted = hosted
        self._capacity = capacity
        self._owner = owner
        self._readiness = Readiness(
            ready_log=bool(model.ready_log) or model.lifecycle,
            benchmark=bool(settings.benchmark.route) and not settings.benchmark.max_perf,
            probe_every_s=model.probe_every_s,
            probe_failures=model.probe_failures,
            stall_timeout_s=model.stall_timeout_s,
            now=time.monotonic(),
        )
        self._gate = GpuGate(model.stall_timeout_s)
        self._gpus = GpuWatch(runtime, model.gpu_watch_s, self)
        self._measurement: Measurement | None = None
        self._measured_requests = 0
        self._probe_text = ""  # what was wrong with the latest probe
        self._wake: asyncio.TimerHandle | None = None
        self._verdict: words.Verdict | None = None
        self._report: words.Report | None = None

    # ------------------------------------------------------------------ what it knows

    @property
    def benchmarked(self) -> int:
        """Benchmark requests sent so far."""
        return self._measured_requests + (self._measurement.sent if self._measurement else 0)

    @property
    def verdict(self) -> ModelVerdict | None:
        """For the supervisor; None until there is something to say."""
        said = self._verdict
        if said is None:
            return None
        return ModelVerdict(
            said.generation, said.healthy, said.ready, said.wedged, said.reason,
            self._capacity.max_perf,
        )  # fmt: skip

    @property
    def report(self) -> ModelReport | None:
        """For the reporter; None until there is something to say."""
        said = self._report
        if said is None:
            return None
        return ModelReport(
            said.ready, self._runtime.mask(said.error), said.load_time_s, said.generation,
            self._capacity.max_perf,
        )  # fmt: skip

    @property
    def gauges(self) -> dict[str, Any]:
        """What goes with each heartbeat."""
        verdict = self.verdict
        return {
            "model_ready": verdict is not None and verdict.ready,
            "model_reason": "" if verdict is None else verdict.reason,
            "model_awaits": self.awaits,
            **self._gpus.gauges,
        }

    @property
    def gpus(self) -> list[Gpu]:
        """The GPUs as they were seen last."""
        return self._gpus.gpus

    @property
    def awaits(self) -> str:
        """What its readiness waits for, in the words of people; "" when the verdict says more."""
        if self._gate.trouble:
            return self._gate.trouble
        model = self._runtime.settings.model
        match self._readiness.awaits:
            case words.Awaits.LINE if model.lifecycle:
                file = os.path.basename(self._runtime.settings.hooks.file)
                return f"waiting for the lifecycle of {file}"
            case words.Awaits.LINE:
                return f"waiting for a line with {_any_of(model.ready_log)} in {self._log()}"
            case words.Awaits.PROBE:
                last = f" (last: {self._probe_text})" if self._probe_text else ""
                if model.health:
                    return f"waiting for GET {model.health} to answer 2xx{last}"
                return f"waiting for {model.url} to take a connection{last}"
            case words.Awaits.BENCHMARK:
                return "measuring capacity (benchmark)"
            case _:
                return ""

    def _log(self) -> str:
        """Where its lines are looked for, and whether there is such a place."""
        model = self._runtime.settings.model
        if model.command or not model.log_file:
            return "its output"
        try:
            os.stat(model.log_file)
        except FileNotFoundError:
            return f"{model.log_file} (no such file yet)"
        except OSError as error:
            return f"{model.log_file} ({error.strerror})"
        return model.log_file

    # ------------------------------------------------------------------ what it hears

    def start(self) -> None:
        """Look at the GPUs, where there are some."""
        self._gpus.start()

    def gpu_fault(self, text: str) -> None:
        """Which GPUs cannot be used; "": all can."""
        self._carry_out(self._gate.fault(text))

    def gpu_hit(self, text: str) -> None:
        """What ran on a GPU is dead."""
        self._carry_out(self._gate.hit(text, time.monotonic()))

    def on_model_state(self, message: ModelState) -> None:
        """Where the model server's process stands."""
        if message.max_perf > 0:
            self._capacity.benchmarked(message.max_perf)
            self._owner.capacity_changed()
        self._gate.model_state(message.state, message.generation)
        self._do(
            self._readiness.model_state(
                message.state,
                message.generation,
                message.reason,
                time.monotonic(),
                measured=message.max_perf > 0,
                started_at=message.started_at,
            )
        )
        if message.state in (ChildState.BACKOFF, ChildState.FAILED):
            self._client.close_all(f"the model server died ({message.reason})")

    def on_log_match(self, message: LogMatch) -> None:
        """A line of its log contained a pattern."""
        self._do(
            self._readiness.log_match(
                message.generation, message.kind, message.pattern, message.line, time.monotonic()
            )
        )

    def on_lost(self) -> None:
        """A request got no answer at all: look at the model server at once."""
        self.note_progress()
        self._do(self._readiness.connection_refused(time.monotonic()))

    def note_progress(self) -> None:
        """Bytes came, or did not."""
        client, hosted = self._client, self._hosted
        self._readiness.progress(client.progress_at)
        if self._gate.pending:
            running = client.in_flight + (hosted.in_flight if hosted else 0)
            self._carry_out(self._gate.look(running, client.progress_at, time.monotonic()))

    async def stop(self) -> None:
        """No timer and no benchmark any more."""
        self._stop_measuring()
        if self._wake is not None:
            self._wake.cancel()
        await self._gpus.stop()

    # ------------------------------------------------------------------ what it does

    def _do(self, commands: Sequence[words.Command]) -> None:
        self._carry_out(self._gate.passes(commands))

    def _carry_out(self, commands: Sequence[words.Command]) -> None:
        for command in commands:
            match command:
                case words.Probe():
                    self._runtime.spawn(self._probe())
                case words.StartBenchmark(attempt):
                    self._measure(attempt)
                case words.StopBenchmark():
                    self._stop_measuring()
                case words.BackendUp():
                    self._owner.backend_up()
                case words.BackendDown(reason):
                    self._owner.backend_down(self._runtime.mask(reason))  # clients are told
                case words.BackendFailed(reason):
                    self._owner.backend_failed(self._runtime.mask(reason))
                case words.Verdict():
                    self._verdict = command
                    self._runtime.beat_now()
                case words.Report():
                    self._keep(command)
                case words.Wake(at):
                    self._wake_at(at)
                case _:
                    assert_never(command)

    def _keep(self, report: words.Report) -> None:
        before = self._report
        if report.error and (before is None or report.error != before.error):
            _log.warning("%s", report.error)
        self._report = report
        self._owner.standing_changed()

    def _wake_at(self, at: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay_s = max(0.0, at - time.monotonic())
        self._wake = self._runtime.loop.call_later(delay_s, self._awake)

    def _awake(self) -> None:
        self.note_progress()
        self._do(self._readiness.tick(time.monotonic()))

    async def _probe(self) -> None:
        """The health path where there is one, else: does the port take a connection?"""
        model = self._runtime.settings.model
        if model.health:
            try:
                result = await self._client.probe(model.health, model.probe_timeout_s)
            except ValueError as error:
                result = ProbeResult(0, str(error))
            ok = result.ok
            text = result.error or f"{model.health} answered {result.status}"
        else:
            text = await self._client.reach(model.probe_timeout_s)
            ok = not text
        self._probe_text = "" if ok else text
        self._do(self._readiness.probe_result(ok, text, time.monotonic()))

    def _measure(self, attempt: int) -> None:
        benchmark = self._runtime.settings.benchmark.route
        route = next((r for r in self._runtime.settings.route if r.path == benchmark), None)
        if route is None:  # a reload took it away
            self._not_measured(attempt, f"benchmark.route {benchmark} is no route any more")
            return
        settings = self._runtime.settings.benchmark
        sampled = self._samples if settings.sampled else None
        self._measurement = Measurement(
            self._client,
            self._hosted,
            sampled or fixed(settings, route),
            settings,
            route,
            self._runtime.loop,
            on_done=lambda max_perf: self._measured(attempt, max_perf),
            on_failed=lambda reason: self._not_measured(attempt, reason),
        )
        self._measurement.begin()

    def _stop_measuring(self) -> None:
        if self._measurement is not None:
            self._measured_requests += self._measurement.sent
            self._measurement.cancel()
            self._measurement = None

    def _measured(self, attempt: int, max_perf: float) -> None:
        self._stop_measuring()
        if max_perf > 0:
            _log.info("benchmark: %.1f workload/s", max_perf)
            self._owner.measured(max_perf)
            self._capacity.benchmarked(max_perf)
        else:
            _log.warning(
                "the benchmark's requests count as no work: traffic will show the capacity"
            )
        self._owner.capacity_changed()
        self._do(self._readiness.benchmark_done(attempt, time.monotonic()))

    def _not_measured(self, attempt: int, reason: str) -> None:
        self._stop_measuring()
        self._do(self._readiness.benchmark_failed(attempt, reason, time.monotonic()))


def _any_of(texts: Sequence[str]) -> str:
    """The patterns as people read them; a list may be long."""
    shown = " or ".join(repr(text) for text in texts[:MAX_PATTERNS])
    return shown if len(texts) <= MAX_PATTERNS else f"{shown} or {len(texts) - MAX_PATTERNS} more"
