"""Prometheus metrics: plain numbers that are counted as events come, and rendered when asked for.

Law: labels are bounded. Routes are the configured ones (anything else is ``other``), the rest are
closed sets of this project's own words. Nothing here is shared with a registry of anyone else, and
prometheus-client is imported at the first scrape, for a quick start.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from reporter.ledger import pending
from reporter.messages import SESSION_ROUTE, Closed, Gpu, Outcome, QueueReport, Totals

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "lighterman_"
OTHER = "other"
#: Kinds and names that are kept; they come from closed sets, this only bounds a fault of ours.
MAX_LABELS = 64

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_OUTCOMES = frozenset(Outcome)
_REJECTED = Outcome.REJECTED.value
_STATUSES = {hundreds: f"{hundreds}xx" for hundreds in range(1, 6)}


class Gauges(msgspec.Struct, frozen=True):
    """What the other rooms know at the moment of a scrape."""

    totals: Totals = msgspec.field(default_factory=Totals)
    working: int = 0
    queue: QueueReport = msgspec.field(default_factory=lambda: QueueReport(0, 0, 0, 0))
    refused: dict[str, int] = {}  #: kind → count
    restarts: dict[str, int] = {}  #: child → count
    model_ready: bool = False
    max_perf: float = 0.0
    status_posted: int = 0
    status_failed: int = 0
    requests_posted: int = 0
    requests_failed: int = 0
    rows_waiting: int = 0
    rows_dropped: int = 0
    drift: int = 0
    gaps: int = 0
    store_failures: int = 0


class _Histogram:
    """Observations of one label set."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: list[float]) -> None:
        """All at once: what is sorted is counted by a few looks, not by one for each."""
        seconds.sort()
        if seconds[0] < 0.0:
            seconds = [max(0.0, each) for each in seconds]
        self.sum += sum(seconds)
        below = 0
        for number, bound in enumerate(SECONDS):
            if below == len(seconds):
                return
            upto = bisect_right(seconds, bound, below)
            self.counts[number] += upto - below
            below = upto
        self.counts[-1] += len(seconds) - below

    def buckets(self) -> list[tuple[str, float]]:
        bounds = [*(f"{bound:g}" for bound in SECONDS), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self.counts))]


class Metrics:
    """The counters of ended requests, and the text that Prometheus reads.

    Args:
        routes: the configured routes.
    """

    def __init__(self, routes: Iterable[str]) -> None:
        #: the configured routes
        self.routes = frozenset(routes)
        self._requests: dict[tuple[str, str, str], int] = {}
        self._duration: dict[str, _Histogram] = {}
        self._first_byte: dict[str, _Histogram] = {}
        self._queue_wait: dict[str, _Histogram] = {}

    def count(self, closed: Iterable[Closed]) -> None:
        """Requests ended, each counted once (``Load.apply`` says which)."""
        by_route: dict[str, list[Closed]] = {}
        for each in closed:
            some = by_route.get(each.route)
            if some is None:
                some = by_route[each.route] = []
            some.append(each)
        for route, some in by_route.items():
            known = route in self.routes or route == SESSION_ROUTE
            self._count(route if known else OTHER, some)

    def _count(self, route: str, closed: list[Closed]) -> None:
        for (told, status), count in Counter([(e.outcome, e.status) for e in closed]).items():
            outcome = told if told in _OUTCOMES else Outcome.ERROR.value
            key = (route, outcome, _STATUSES.get(status // 100, OTHER))
            self._requests[key] = self._requests.get(key, 0) + count
        worked = [e for e in closed if e.outcome != _REJECTED]
        first = [e.first_byte_at - e.entered_at for e in worked if e.first_byte_at]
        waits = [e.started_at - e.entered_at for e in worked if e.started_at]
        _observe(self._duration, route, [e.ended_at - e.entered_at for e in worked])
        _observe(self._first_byte, route, first)
        _observe(self._queue_wait, route, waits)

    def render(self, gauges: Gauges) -> bytes:
        """The page in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(list(self._families(gauges))))
        return generate_latest(registry)

    def _families(self, gauges: Gauges) -> Iterator[Metric]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        def counter(name: str, text: str, value: float) -> Metric:
            return CounterMetricFamily(PREFIX + name, text, value=value)

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(PREFIX + name, text, value=value)

        def counters(name: str, text: str, label: str, values: dict[str, float]) -> Metric:
            family = CounterMetricFamily(PREFIX + name, text, labels=[label])
            for value in sorted(values)[:MAX_LABELS]:
                family.add_metric([value], values[value])
            return family

        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests that ended.", labels=["route", "outcome", "status"]
        )
        for key, count in sorted(self._requests.items()):
            requests.add_metric(key, count)
        yield requests

        for name, text, histograms in (
            ("request_duration_seconds", "From arrival to the end.", self._duration),
            ("first_byte_seconds", "From arrival to the first answer byte.", self._first_byte),
            ("queue_wait_seconds", "From arrival to dispatch.", self._queue_wait),
        ):
            family = HistogramMetricFamily(PREFIX + name, text, labels=["route"])
            for route, histogram in sorted(histograms.items()):
                family.add_metric([route], histogram.buckets(), histogram.sum)
            yield family

        totals = gauges.totals
        yield counters(
            "workload",
            "Workload by what became of it.",
            "state",
            {
                "received": totals.received,
                "served": totals.served,
                "errored": totals.errored,
                "cancelled": totals.cancelled,
                "rejected": totals.rejected,
            },
        )
        yield gauge("workload_pending", "Workload that has not ended.", pending(totals))
        yield counter("requests_received", "Requests, whatever became of them.", totals.requests)
        yield gauge("requests_working", "Requests that have not ended.", gauges.working)
        yield gauge("queue_waiting", "Requests in the queue.", gauges.queue.waiting)
        yield gauge("queue_running", "Requests on the model server.", gauges.queue.running)
        yield gauge("sessions_open", "Sessions that are open.", gauges.queue.sessions)
        yield gauge("queue_waiting_bytes", "Bodies in the queue.", gauges.queue.waiting_bytes)
        yield counter("retried", "Requests sent to the model again.", gauges.queue.retried)
        refused = {kind: float(count) for kind, count in gauges.refused.items()}
        yield counters("refused", "Refused before they were work.", "kind", refused)
        restarts = {child: float(count) for child, count in gauges.restarts.items()}
        yield counters("restarts", "Restarts of a process.", "child", restarts)
        yield gauge("model_ready", "1: the model server is ready.", gauges.model_ready)
        yield gauge("max_perf", "Measured workload per second.", gauges.max_perf)
        yield from _gpu_families(gauges.queue.gpus)

        posts = CounterMetricFamily(
            PREFIX + "engine_posts", "Posts to the engine.", labels=["kind", "result"]
        )
        posts.add_metric(["status", "accepted"], gauges.status_posted)
        posts.add_metric(["status", "failed"], gauges.status_failed)
        posts.add_metric(["requests", "accepted"], gauges.requests_posted)
        posts.add_metric(["requests", "failed"], gauges.requests_failed)
        yield posts
        yield gauge("rows_waiting", "Ended requests to report yet.", gauges.rows_waiting)
        yield counter("rows_dropped", "Ended requests never reported.", gauges.rows_dropped)
        yield counter("drift", "Batches whose sums disagreed with events.", gauges.drift)
        yield counter("gaps", "Times that accounts had been lost.", gauges.gaps)
        yield counter("store_failures", "Commits not on disk.", gauges.store_failures)


def _gpu_families(gpus: list[Gpu]) -> Iterator[Metric]:
    """Devices are few, and each has one name: their number bounds the labels."""
    from prometheus_client.core import GaugeMetricFamily

    def family(name: str, text: str, values: Iterable[tuple[Gpu, float]]) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["gpu", "name"])
        for gpu, value in values:
            family.add_metric([str(gpu.index), gpu.name], value)
        return family

    gpus = gpus[:MAX_LABELS]
    if not gpus:
        return
    yield family("gpu_usable", "1: nothing hinders its use.", [(g, g.usable) for g in gpus])
    sized = [gpu for gpu in gpus if gpu.total_bytes]
    yield family("gpu_memory_used_bytes", "Its memory in use.", [(g, g.used_bytes) for g in sized])
    yield family("gpu_memory_total_bytes", "Its memory.", [(g, g.total_bytes) for g in sized])
    yield family(
        "gpu_utilization",
        "Share of time in which it worked, 0 to 1.",
        [(g, g.utilization) for g in gpus if g.utilization >= 0],
    )


class _Scrape:
    """The collector of one scrape."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _observe(histograms: dict[str, _Histogram], route: str, seconds: list[float]) -> None:
    if not seconds:
        return
    histogram = histograms.get(route)
    if histogram is None:
        histogram = histograms[route] = _Histogram()
    histogram.observe(seconds)
