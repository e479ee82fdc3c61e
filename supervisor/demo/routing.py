"""Which worker gets the next request.

Responsible for what the engine knows of its workers. Its laws: a worker is chosen only when it is
ready; among the ready ones the expected wait is least; a worker that was silent for longer than
SILENT_S is not ready. It must not know about HTTP, signatures or clocks: ``now`` is an argument.

A worker is ready when it reported that its model is loaded (a ``loadtime`` that is not 0, once; or
a ``max_perf``, which it can only know from a loaded model: that is how an engine that was
restarted learns it), its last report has no ``error_msg``, and it said where it is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from supervisor.demo.engine_api import Json, Report

#: Seconds without a report after which a worker gets no requests (it reports every 10 s at least).
SILENT_S = 30.0

#: Seconds without a report after which a worker is forgotten.
FORGET_S = 3600.0

#: Workers that are remembered; one more, and the one that was silent longest is forgotten.
MAX_WORKERS = 1000


class WorkerStatus(enum.StrEnum):
    """Why a worker is, or is not, chosen."""

    READY = "ready"
    LOADING = "loading"
    ERROR = "error"
    SILENT = "silent"


@dataclass(slots=True)
class Worker:
    """What is known of one worker. Times are those of the ``now`` that was passed in."""

    key: str
    report: Report  #: the last one
    reported_at: float
    first_at: float
    loaded_at: float | None = None
    assigned: float = 0.0  #: cost of the requests sent there since the last report

    @property
    def expected_wait_s(self) -> float:
        """Seconds until a request sent there now would begin; speed 1 where none is known."""
        return (self.report.cur_load + self.assigned) / (self.report.max_perf or 1.0)

    def status(self, now: float) -> WorkerStatus:
        """Where the worker stands."""
        if now - self.reported_at > SILENT_S:
            return WorkerStatus.SILENT
        if self.report.error_msg:
            return WorkerStatus.ERROR
        if self.loaded_at is None or not self.report.url:
            return WorkerStatus.LOADING
        return WorkerStatus.READY


class Registry:
    """The workers, by id; those that have none (id 0) by URL."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    @property
    def workers(self) -> list[Worker]:
        """Every worker that is remembered, in the order of their first reports."""
        return list(self._workers.values())

    def report(self, report: Report, now: float) -> Worker:
        """Take in a worker's report; the first one registers it."""
        key = str(report.id) if report.id else report.url
        worker = self._workers.get(key)
        if worker is None:
            if len(self._workers) >= MAX_WORKERS:
                oldest = min(self._workers.values(), key=lambda known: known.reported_at)
                del self._workers[oldest.key]
            worker = self._workers[key] = Worker(key, report, now, now)
        worker.report = report
        worker.reported_at = now
        worker.assigned = 0.0
        if worker.loaded_at is None and (report.loadtime or report.max_perf):
            worker.loaded_at = now
        return worker

    def choose(self, cost: float, now: float) -> Worker | None:
        """The ready worker with the least expected wait, charged with ``cost``; None: none is."""
        ready = [
            worker for worker in self._workers.values() if worker.status(now) is WorkerStatus.READY
        ]
        if not ready:
            return None
        chosen = min(ready, key=lambda worker: worker.expected_wait_s)
        chosen.assigned += cost
        return chosen

    def expire(self, now: float) -> list[Worker]:
        """Forget the workers that were silent for FORGET_S; these."""
        gone = [worker for worker in self._workers.values() if now - worker.reported_at > FORGET_S]
        for worker in gone:
            del self._workers[worker.key]
        return gone

    def view(self, now: float) -> dict[str, Json]:
        """The workers by key, each as ``/get_endpoint_workers/`` lists it; ages in seconds."""
        return {
            worker.key: {
                "id": worker.report.id,
                "status": str(worker.status(now)),
                "url": worker.report.url,
                "error_msg": worker.report.error_msg,
                "cur_load": worker.report.cur_load,
                "new_load": worker.report.new_load,
                "max_perf": worker.report.max_perf,
                "perf": worker.report.max_perf,
                "measured_perf": worker.report.max_perf,
                "cur_perf": worker.report.cur_perf,
                "reqs_working": worker.report.num_requests_working,
                "disk_usage": worker.report.disk_usage,
                "assigned": worker.assigned,
                "expected_wait_s": worker.expected_wait_s,
                "silent_s": now - worker.reported_at,
            }
            for worker in self._workers.values()
        }
