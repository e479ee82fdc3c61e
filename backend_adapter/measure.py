"""The hands of one benchmark: sends what ``benchmark.py`` plans to the model server itself.

Its requests do not pass the queue: they are nobody's jobs, and no job is dispatched meanwhile. It
must not know what the outcome is used for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import msgspec

from backend_adapter.benchmark import Benchmark, Done, Failed, SendBatch
from backend_adapter.benchmark import Command as Planned
from backend_adapter.hook_messages import AWAY, is_unsent
from backend_adapter.model_client import ModelClient
from backend_adapter.model_request import Request, Sink
from backend_adapter.response_headers import ResponseHead
from backend_adapter.samples import JSON_TYPE, Fixed, Payload, Source
from supervisor.settings import BenchmarkSettings, RouteSettings


class _Probe(Sink):
    """The sink of one benchmark request: only how it ended matters."""

    __slots__ = ("_away", "_done", "_status", "client", "request", "workload")

    def __init__(
        self,
        client: ModelClient,
        path: str,
        payload: Payload,
        done: Callable[[_Probe, str], None],
    ) -> None:
        self.client = client
        self._done = done
        self._status = 0
        self._away = False
        self.workload = payload.workload
        self.request = Request("POST", path, payload.headers, payload.body, self)

    def on_head(self, head: ResponseHead) -> None:
        """Keep the status."""
        self._status = head.status
        self._away = is_unsent(head.status, head.headers)

    def on_body(self, data: bytes) -> None:
        """The text does not matter."""

    def on_end(self) -> None:
        """Only a 2xx is a success: a fast error must not look like a fast worker."""
        if self._away:
            self._done(self, AWAY)
            return
        good = 200 <= self._status < 300
        self._done(self, "" if good else f"the model server answered {self._status}")

    def on_lost(self, sent: int, reason: str) -> None:
        """Never answered."""
        self._done(self, reason)

    def on_broken(self, kind: str, message: str) -> None:
        """Broke off."""
        self._done(self, message)


class Measurement:
    """One attempt.

    Args:
        client: the connections to the model server.
        hosted: those to the functions of a worker.py, where there are some.
        source: makes the payloads.
        benchmark: payload and rounds.
        route: where it is sent, and how its work is counted.
        on_done: called with the workload per second.
        on_failed: called with the reason.
    """

    def __init__(
        self,
        client: ModelClient,
        hosted: ModelClient | None,
        source: Source,
        benchmark: BenchmarkSettings,
        route: RouteSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        on_done: Callable[[float], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._client = client
        self._hosted = hosted
        self._loop = loop
        self._source = source
        self._route = route
        self._timeout_s = benchmark.timeout_s
        self._on_done = on_done
        self._on_failed = on_failed
        concurrency = min(benchmark.concurrency, route.concurrency or benchmark.concurrency)
        self._plan = Benchmark(
            runs=benchmark.runs, concurrency=concurrency, warmup=benchmark.warmup
        )
        self._running: dict[_Probe, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: requests sent so far
        self.sent = 0

    def begin(self) -> None:
        """Send the first batch."""
        self._follow(self._plan.start(time.monotonic()))

    def cancel(self) -> None:
        """Give up: no callback comes any more."""
        self._plan.cancel()
        self._source.let_go()
        self._abandon()

    def _abandon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for probe in list(self._running):
            probe.client.cancel(probe.request)
        self._running.clear()

    def _follow(self, command: Planned | None) -> None:
        match command:
            case None:
                pass
            case SendBatch(batch, count):
                self._send(batch, count)
            case Done(max_perf):
                self._abandon()
                self._on_done(max_perf)
            case Failed(reason):
                self._abandon()
                self._on_failed(reason)

    def _send(self, batch: int, count: int) -> None:
        self._abandon()
        self._source.draw(self._route.path, count, partial(self._drawn, batch))

    def _drawn(self, batch: int, payloads: list[Payload] | float | str) -> None:
        """The payloads are there: from now on it is the model server's time."""
        if not isinstance(payloads, list):
            self._plan.cancel()
            if isinstance(payloads, str):
                self._on_failed(payloads)
            else:
                self._on_done(payloads)
            return
        self._plan.began(batch, time.monotonic())
        self._timer = self._loop.call_later(self._timeout_s, self._timed_out, batch)
        for payload in payloads:
            client = self._hosted if payload.hosted and self._hosted else self._client
            probe = _Probe(client, self._route.target, payload, partial(self._ended, batch))
            self._running[probe] = None
            self.sent += 1
            try:
                client.send(probe.request)
            except ValueError as error:  # told like any other failure, when all have been sent
                self._loop.call_soon(self._ended, batch, probe, str(error))

    def _ended(self, batch: int, probe: _Probe, error: str) -> None:
        self._running.pop(probe, None)
        now = time.monotonic()
        self._follow(self._plan.result(batch, not error, probe.workload, error, now))

    def _timed_out(self, batch: int) -> None:
        self._abandon()
        self._follow(self._plan.timeout(batch, time.monotonic()))


def fixed(benchmark: BenchmarkSettings, route: RouteSettings) -> Fixed:
    """The payloads of the settings."""
    given = benchmark.payloads or [benchmark.payload]
    encode = msgspec.json.encode
    return Fixed([Payload(encode(each), JSON_TYPE, workload_of(each, route)) for each in given])


def workload_of(payload: object, route: RouteSettings) -> float:
    """Workload of the benchmark's payload, as its route's requests are measured."""
    value = payload
    for name in route.workload.field.split(".") if route.workload.field else ():
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    return route.workload.default
