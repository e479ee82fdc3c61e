"""The worker that is soaked, and what its engine is told.

With default settings but for what makes things happen sooner: probes, reports and restarts.
"""

from __future__ import annotations

import asyncio
import time
import tomllib
from pathlib import Path
from typing import Any

from tests.kit.worker import Worker, get_json

ROUTES = """
[[route]]
path = "/generate"
workload = { field = "work", default = 10 }
max_queue_time_s = 120
[[route]]
path = "/generate_stream"
workload = { field = "work", default = 10 }
max_queue_time_s = 120
[[route]]
path = "/serial"
upstream = "/generate"
concurrency = 1
workload = { field = "work", default = 10 }
max_queue_time_s = 120
"""
MODEL = ("--tokens-per-second", "150", "--load-seconds", "0.2")
SETTINGS = (
    "restart.budget=1000000", "restart.first_delay_s=0.05", "restart.max_delay_s=0.5",
    "model.probe_every_s=0.5", "model.probe_timeout_s=1", "model.stall_timeout_s=3",
    "engine.report_every_s=1", "limits.sessions=64", "limits.stream_credit_bytes=16384",
)  # fmt: skip
#: A worker.py of a user, in whose hands each request is once: its functions say what it amounts to.
WORKER_PY = """
from vastai import HandlerConfig, LogActionConfig, Worker, WorkerConfig

def handler(route):
    return HandlerConfig(
        route=route, allow_parallel_requests=True, max_queue_time=120.0,
        request_parser=lambda body: body, workload_calculator=lambda body: body["work"],
    )

Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[handler("/generate"), handler("/generate_stream")],
    log_action_config=LogActionConfig(),
)).run()
"""


def make(directory: Path, ingresses: int, worker_py: bool) -> Worker:
    """A worker to start; through a worker.py there is no serial route."""
    worker = Worker(
        directory,
        routes=ROUTES,
        model_flags=MODEL,
        settings=(f"worker.processes={ingresses}", *SETTINGS),
    )
    if worker_py:
        command = tomllib.loads(worker.file.read_text())["model"]["command"]
        worker.file = directory / "worker.py"
        worker.file.write_text(WORKER_PY.replace("PORT", str(worker.model_port)))
        worker.settings += (f"model.command={','.join(command)}",)
    return worker


class Record:
    """The engine's record, read piece by piece, because it forgets the oldest."""

    def __init__(self, worker: Worker) -> None:
        self._url = worker.engine
        self._next = 0
        self._offset_s = time.monotonic() - time.time()
        self.rows: list[dict[str, Any]] = []
        self.statuses: list[dict[str, Any]] = []

    def read(self) -> None:
        """What is new."""
        told = get_json(f"{self._url}/demo/record?since={self._next}")
        self._next = told["next"]
        for entry in (*told["requests"], *told["status"]):
            entry["received_at"] += self._offset_s
        self.rows += told["requests"]
        self.statuses += told["status"]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.read)
            await asyncio.sleep(0.5)
