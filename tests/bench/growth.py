"""What a small request costs ingress and adapter while others wait, and while streams are open."""

from __future__ import annotations

import asyncio
import socket
import statistics
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from supervisor import file_limit
from tests.bench import stand
from tests.bench.table import Goal, Row
from tests.bench.unary import scripts, wrk
from tests.kit.wait import wait_until

WAITING = (10, 1_000, 10_000)
OPEN = (10, 1_000, 5_000)
#: Connections that are made at once.
AT_ONCE = 200


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """Both."""
    file_limit.raise_limit()
    waiting = {many: _beside_waiting(many, rounds, seconds) for many in WAITING}
    yield from _rows("waiting", waiting)
    streams = {many: _beside_streams(many, rounds, seconds) for many in OPEN}
    yield from _rows("open streams", streams)


def _rows(what: str, costs: dict[int, float]) -> Iterator[Row]:
    least = min(costs)
    for many, cost in costs.items():
        yield Row(f"CPU of a request, {many:,} {what}", "µs", {"worker": cost})
        if many != least:
            figure = {"worker": cost / costs[least]}
            yield Row(f"… beside {least} {what}", "×", figure, [Goal(1.2, False)])


def _beside_waiting(many: int, rounds: int, seconds: float) -> float:
    # without files for bodies a client costs one descriptor, not two
    settings = (f"limits.connections={2 * WAITING[-1]}", "limits.spool_bytes=0")
    with tempfile.TemporaryDirectory() as name, stand.streaming(Path(name), 0.0, settings) as bench:
        # None is read. The first, a stream larger than all buffers, is held back by its client, and
        # the others wait for it, because their lane takes one at a time.
        large = bench.body("worker", {"prompt": "x", "max_tokens": 60_000, "stream": True})
        request = _request("/held", large)
        holding = _hold(bench, request, many + 1)
        return uvloop.run(_cost(bench, Path(name), holding, many, rounds, seconds))


def _beside_streams(many: int, rounds: int, seconds: float) -> float:
    settings = (
        f"limits.connections={2 * OPEN[-1]}", "limits.spool_bytes=0",
        f"model.max_connections={2 * OPEN[-1]}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name, stand.static(Path(name), (), settings) as bench:
        request = _request(stand.ENDLESS, bench.body("worker", stand.PAYLOAD))
        holding = _hold(bench, request, many)
        return uvloop.run(_cost(bench, Path(name), holding, many, rounds, seconds))


def _request(path: str, body: bytes) -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nhost: w\r\ncontent-length: %d\r\n\r\n"
        % (
            path.encode(),
            len(body),
        )
        + body
    )


async def _hold(bench: stand.Stand, request: bytes, many: int) -> list[asyncio.StreamWriter]:
    """So many clients that send it and do not read."""
    address = urlsplit(bench.urls["worker"])
    loop = asyncio.get_running_loop()

    async def one() -> asyncio.StreamWriter:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (address.hostname, address.port))
        _, writer = await asyncio.open_connection(sock=client)
        writer.write(request)
        await writer.drain()
        return writer

    writers: list[asyncio.StreamWriter] = []
    for start in range(0, many, AT_ONCE):
        writers += await asyncio.gather(*(one() for _ in range(min(AT_ONCE, many - start))))
    return writers


async def _cost(
    bench: stand.Stand,
    directory: Path,
    holding: Coroutine[None, None, list[asyncio.StreamWriter]],
    many: int,
    rounds: int,
    seconds: float,
) -> float:
    """CPU microseconds of ingress and adapter for one request of a free lane: the median."""
    script = scripts(directory, bench)["worker"]
    writers = await holding

    def held() -> bool:
        queue = bench.worker.status()["queue"]
        return many in (queue.get("waiting"), queue.get("running"))

    def cost() -> float:
        wait_until(held, 120.0, f"{many} to be held")
        before = stand.cpu_s(bench)
        found = wrk(bench.urls["worker"] + stand.ROUTE, script, 4, seconds)
        after = stand.cpu_s(bench)
        wait_until(held, 30.0, f"{many} to be held still")  # what is known of it is a beat old
        used = sum(after[name] - before[name] for name in ("ingress", "backend_adapter"))
        return used * 1e6 / found["requests"]

    def costs() -> list[float]:
        wrk(bench.urls["worker"] + stand.ROUTE, script, 4, 1)  # to get warm
        return [cost() for _ in range(rounds)]

    try:
        return statistics.median(await asyncio.to_thread(costs))
    finally:
        for writer in writers:
            writer.close()
