"""What the worker's own processes take: memory at rest and for each idle stream, and the time from
the worker's start to its first accepted connection.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from supervisor import file_limit
from supervisor.ports import free_port
from tests.bench import stand
from tests.bench.environments import worker_python
from tests.bench.table import Goal, Row
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end

IDLE_STREAMS = 1_000


def pss_bytes(pid: int) -> float:
    """Its share of memory (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """All of it. Memory is one figure: it hardly differs from round to round."""
    file_limit.raise_limit()
    yield from _start(rounds)
    yield from _memory()


def _start(rounds: int) -> Iterator[Row]:
    took = []
    for _ in range(max(rounds, 3)):
        with tempfile.TemporaryDirectory() as name:
            port = free_port("127.0.0.1")
            worker = Worker(Path(name), settings=(f"worker.port={port}",), python=worker_python())
            began = time.monotonic()
            worker.start()
            try:
                wait_until(lambda: _accepts(port), what="the port to accept")  # noqa: B023
                took.append(time.monotonic() - began)
                worker.wait_ready()
            finally:
                end(worker)
    yield Row("start → port accepts", "s", {"worker": statistics.median(took)}, [Goal(0.6, False)])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _memory() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name, stand.streaming(Path(name), 0.02) as bench:
        pids = bench.processes()
        rest = {each: pss_bytes(pid) for each, pid in pids.items()}
        for each, held in rest.items():
            yield Row(f"memory at rest (PSS), {each}", "MB", {"worker": held / 1e6})
        total = {"worker": sum(rest.values()) / 1e6}
        yield Row("memory at rest (PSS), all four", "MB", total, [Goal(100, False)])
        payload = {"prompt": "x", "max_tokens": 1000, "stream": True}
        with ExitStack() as stack:
            for _ in range(IDLE_STREAMS):
                stack.enter_context(_begun(bench.urls["worker"], bench.body("worker", payload)))
            wait_until(
                lambda: bench.worker.status()["queue"].get("running") == IDLE_STREAMS,
                what="all streams to run",
            )
            more = sum(pss_bytes(pid) - rest[each] for each, pid in pids.items())
        each_kb = {"worker": more / IDLE_STREAMS / 1e3}
        yield Row(f"memory of one of {IDLE_STREAMS} streams", "KB", each_kb, [Goal(20, False)])


def _begun(url: str, body: bytes) -> socket.socket:
    """A request that is under way."""
    address = urlsplit(url)
    client = socket.create_connection((address.hostname or "", address.port or 0), 30)
    head = f"POST {stand.ROUTE} HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client
