"""Requests of every kind under way at once, for tests in which a process dies meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, post_json, running

T = TypeVar("T")
PACE = ("--tokens-per-second", "25", "--load-seconds", "0.3")
#: ``/serial`` and ``/hasty`` share one lane, in which one request runs at a time.
ROUTES = """
[[route]]
path = "/generate"
workload = { field = "parameters.max_new_tokens" }
[[route]]
path = "/v1/completions"
workload = { field = "max_tokens" }
[[route]]
path = "/serial"
upstream = "/generate"
workload = { field = "parameters.max_new_tokens" }
concurrency = 1
[[route]]
path = "/hasty"
upstream = "/generate"
workload = { field = "parameters.max_new_tokens" }
concurrency = 1
max_queue_time_s = 1
[[route]]
path = "/once"
upstream = "/generate"
workload = { field = "parameters.max_new_tokens" }
redeliver = false
"""


def unary(tag: str, tokens: int) -> dict[str, Any]:
    """Payload of a request that is answered at once, when all of its tokens are there."""
    return {"inputs": "x", "request_id": tag, "parameters": {"max_new_tokens": tokens}}


def stream(tag: str, tokens: int) -> dict[str, Any]:
    """Payload of one whose answer begins with its first token."""
    return {"prompt": "x", "request_id": tag, "max_tokens": tokens, "stream": True}


@contextmanager
def paced(directory: Path, **options: Any) -> Iterator[Worker]:
    """A worker whose model server makes 25 tokens a second, for each request."""
    options.setdefault("model_flags", PACE)
    with running(directory, routes=ROUTES, **options) as worker:
        yield worker


async def until(condition: Callable[[], T], what: str) -> T:
    """Wait while requests go on; returns what the condition returned."""
    return await asyncio.to_thread(wait_until, condition, 60.0, what)


def stats(worker: Worker) -> dict[str, Any]:
    """What the model server says of itself."""
    return dict(get_json(f"http://127.0.0.1:{worker.model_port}/demo/stats"))


def fault(worker: Worker, kind: str, **fields: Any) -> dict[str, Any]:
    """Make the model server misbehave."""
    url = f"http://127.0.0.1:{worker.model_port}/demo/fault"
    return dict(post_json(url, {"kind": kind, **fields}))


def reports(worker: Worker) -> list[dict[str, Any]]:
    """Everything that the engine was told of the worker's state."""
    return [entry.get("report", entry) for entry in worker.record()["status"]]


def rows(worker: Worker) -> dict[int, str]:
    """Each request that the engine was told of, and how it ended; told once each."""
    told = worker.record()["requests"]
    counts = Counter(row["request_idx"] for row in told)
    assert not counts or max(counts.values()) == 1, counts
    return {row["request_idx"]: row["status"] for row in told}


def received(worker: Worker) -> Counter[str]:
    """How often each tag came to the model server, in all of its lives."""
    lines = worker.journal.read_text().splitlines()
    return Counter(line.split()[1] for line in lines if line.startswith("received "))


def settled(worker: Worker, requests: int, served: float) -> None:
    """The engine has heard of so many requests and of so much served work, and that all is over."""

    def told() -> tuple[int, float]:
        return len(rows(worker)), sum(report["cur_perf"] for report in reports(worker))

    wait_until(lambda: told()[0] >= requests and told()[1] >= served, what="all to be reported")
    wait_until(
        lambda: (r := reports(worker)[-1])["cur_load"] == r["num_requests_working"] == 0,
        what="the load to be none",
    )
    assert told() == (requests, served)


def only_restarted(worker: Worker, name: str, before: dict[str, dict[str, Any]]) -> None:
    """It has another process, and nobody else has."""
    after = worker.members()
    changed = {n for n, member in after.items() if member["pid"] != before[n]["pid"]}
    assert changed == {name}
    assert {n: m["restarts"] for n, m in after.items() if m["restarts"]} == {name: 1}


def ends_with_error(outcome: Outcome, kind: str) -> bool:
    """A stream that had begun: cut, with this error as its last event."""
    cut = outcome.kind == "broken" and outcome.status == 200
    return cut and f'"kind":"{kind}"'.encode() in outcome.body.rpartition(b"data: ")[2]


class Mix:
    """Requests of every kind: 8 are sent and not begun, 4 are begun streams, 3 share a serial lane.

    Their tags are ``unary-0``, ``stream-0``, ``serial-0`` and so on.
    """

    UNARY, STREAMS, SERIAL = 8, 4, 3
    ALL = UNARY + STREAMS + SERIAL

    def __init__(self, load: Load, times: int = 1) -> None:
        """Begin them. ``times``: they take 2 s, 3 s, and 1 s one after the other, so many times."""
        self._load = load
        self.unary_tokens, self.stream_tokens = 50 * times, 75 * times
        self.serial_tokens = 25 * times
        #: workload of those whose answer is not begun, and of the streams
        self.unbegun = float(self.UNARY * self.unary_tokens + self.SERIAL * self.serial_tokens)
        self.begun = float(self.STREAMS * self.stream_tokens)
        self._unary = [
            load.start("/generate", unary(f"unary-{n}", self.unary_tokens))
            for n in range(self.UNARY)
        ]
        self._streams = [
            load.start("/v1/completions", stream(f"stream-{n}", self.stream_tokens))
            for n in range(self.STREAMS)
        ]
        self._serial = [
            load.start("/serial", unary(f"serial-{n}", self.serial_tokens))
            for n in range(self.SERIAL)
        ]

    async def under_way(self, worker: Worker) -> None:
        """Wait until each is in its state."""

        def so_far() -> bool:
            tags = received(worker)
            sent = sum(tags[f"unary-{n}"] for n in range(self.UNARY))
            serial = any(tags[f"serial-{n}"] for n in range(self.SERIAL))
            return sent == self.UNARY and serial and self._load.begun == self.STREAMS

        await until(so_far, "every request to be where it is to be")

    async def all(self) -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
        """How they ended: the unary ones, the streams, those of the serial lane."""
        return (
            list(await asyncio.gather(*self._unary)),
            list(await asyncio.gather(*self._streams)),
            list(await asyncio.gather(*self._serial)),
        )


def kinds(outcomes: list[Outcome]) -> dict[str, int]:
    """How many ended how."""
    return dict(Counter(outcome.kind for outcome in outcomes))


def error_of(outcome: Outcome) -> dict[str, Any]:
    """The typed error of an answer that was refused."""
    return dict(json.loads(outcome.body)["error"])


#: Of the directory that lets a signal block a process, or bloat it, or make it fork.
SABOTAGE = {"PYTHONPATH": str(Path(__file__).parents[1] / "kit" / "sabotage")}
FORK, BLOCK, BLOAT = (signal.SIGRTMIN + number for number in range(3))

#: A worker.py that takes part in each request, and starts the model server itself.
SCRIPT = """
import subprocess
import sys
from contextlib import asynccontextmanager

from vastai import HandlerConfig, Worker, WorkerConfig

MODEL = [sys.executable, "-m", "supervisor.demo.model", "--port", "PORT"]


@asynccontextmanager
async def life():
    with subprocess.Popen([*MODEL, "--tokens-per-second", "25"]) as model:
        yield
        model.terminate()


def parse(payload):
    return payload


Worker(
    WorkerConfig(
        model_server_url="http://127.0.0.1",
        model_server_port=PORT,
        model_healthcheck_url="/health",
        lifecycle=life,
        handlers=[
            HandlerConfig("/generate", request_parser=parse, allow_parallel_requests=True),
            HandlerConfig("/v1/completions", request_parser=parse, allow_parallel_requests=True),
        ],
    )
).run()
"""
