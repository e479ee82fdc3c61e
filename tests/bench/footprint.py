"""What the worker's own processes cost: memory at rest and for each idle stream, CPU for a request
while many others wait, and the time from its start to its first accepted connection.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import uvloop

from supervisor import file_limit
from supervisor.ports import free_port
from tests.bench import stand
from tests.bench.table import Goal, Row
from tests.bench.unary import scripts, wrk
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end

IDLE_STREAMS = 1_000
WAITING = (10, 1_000, 10_000)


def pss_kb(pid: int) -> float:
    """Its share of memory (proc(5), smaps_rollup), KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1])
    raise AssertionError("no Pss")


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """All of it."""
    file_limit.raise_limit()
    yield from _start(rounds)
    yield from _memory()
    yield from _waiting(seconds)


def _start(rounds: int) -> Iterator[Row]:
    took = []
    for _ in range(max(rounds, 3)):
        with tempfile.TemporaryDirectory() as name:
            port = free_port("127.0.0.1")
            worker = Worker(Path(name), settings=(f"worker.port={port}",))
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
        rest = {each: pss_kb(pid) for each, pid in pids.items()}
        for each, kb in rest.items():
            yield Row(f"memory at rest (PSS), {each}", "MB", {"worker": kb / 1e3})
        total = {"worker": sum(rest.values()) / 1e3}
        yield Row("memory at rest (PSS), all four", "MB", total, [Goal(100, False)])
        payload = {"prompt": "x", "max_tokens": 1000, "stream": True}
        with ExitStack() as stack:
            for _ in range(IDLE_STREAMS):
                stack.enter_context(_begun(bench.urls["worker"], bench.body("worker", payload)))
            wait_until(
                lambda: bench.worker.status()["queue"].get("running") == IDLE_STREAMS,
                what="all streams to run",
            )
            more = sum(pss_kb(pid) - rest[each] for each, pid in pids.items())
        each_kb = {"worker": more / IDLE_STREAMS}
        yield Row(f"memory of one of {IDLE_STREAMS} streams", "KB", each_kb, [Goal(20, False)])


def _begun(url: str, body: bytes) -> socket.socket:
    """A request that is under way."""
    address = urlsplit(url)
    client = socket.create_connection((address.hostname or "", address.port or 0), 30)
    head = f"POST {stand.ROUTE} HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


async def _hold(url: str, body: bytes, count: int, held: asyncio.Event, go: asyncio.Event) -> None:
    """So many requests of the lane that takes one at a time. None is read: the first, a stream
    larger than all buffers, is held back by its client, and the others wait for it.
    """
    address = urlsplit(url)
    head = f"POST /held HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def one() -> asyncio.StreamWriter:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (address.hostname, address.port))
        _, writer = await asyncio.open_connection(sock=client)
        writer.write(head + body)
        await writer.drain()
        return writer

    loop, writers = asyncio.get_running_loop(), list[asyncio.StreamWriter]()
    for start in range(0, count, 200):
        writers += await asyncio.gather(*(one() for _ in range(min(200, count - start))))
    held.set()
    await go.wait()
    for writer in writers:
        writer.close()


def _waiting(seconds: float) -> Iterator[Row]:
    """Requests of a free lane, while others wait in a lane that is taken."""
    costs: dict[int, float] = {}
    for waiting in WAITING:
        # without files for bodies a client costs one descriptor, not two
        settings = (f"limits.connections={2 * WAITING[-1]}", "limits.spool_bytes=0")
        with (
            tempfile.TemporaryDirectory() as name,
            stand.streaming(Path(name), settings=settings) as bench,
        ):
            script = scripts(Path(name), bench)["worker"]
            large = bench.body("worker", {"prompt": "x", "max_tokens": 60_000, "stream": True})
            costs[waiting] = uvloop.run(_cost(bench, large, script, waiting, seconds))
    first = costs[WAITING[0]]
    for waiting, cost in costs.items():
        yield Row(f"CPU of a request, {waiting:,} waiting", "µs", {"worker": cost})
        if waiting != WAITING[0]:
            goals = [Goal(1.2, False)]
            yield Row(f"… beside {WAITING[0]} waiting", "×", {"worker": cost / first}, goals)


async def _cost(
    bench: stand.Stand, body: bytes, script: Path, waiting: int, seconds: float
) -> float:
    """CPU microseconds of ingress and adapter for one request."""

    def used_s() -> float:
        times = [process.cpu_times() for process in processes]
        return float(sum(each.user + each.system for each in times))

    pids = await asyncio.to_thread(bench.processes)
    processes = [psutil.Process(pids[name]) for name in ("ingress-0", "backend_adapter")]
    held, go = asyncio.Event(), asyncio.Event()
    url = bench.urls["worker"]
    holding = asyncio.create_task(_hold(url, body, waiting + 1, held, go))
    await held.wait()
    await asyncio.to_thread(
        wait_until,
        lambda: bench.worker.status()["queue"].get("waiting") == waiting,
        60.0,
        f"{waiting} to wait",
    )
    before = used_s()
    found = await asyncio.to_thread(wrk, url + stand.ROUTE, script, 4, seconds)
    used = used_s() - before
    go.set()
    await holding
    return used * 1e6 / (found["rps"] * max(1, round(seconds)))
