"""The queue process stands still, nobody replaces it yet, and clients go on coming."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

from tests.chaos.table import row
from tests.kit.flood import Reply, Sender, clients
from tests.kit.memory import MIB, SMALL, watched
from tests.kit.wait import wait_until
from tests.kit.worker import running

MAX_JOBS, MAX_RUNNING = 40, 20
UNANSWERED = MAX_JOBS + MAX_RUNNING
BODY = 100_000
#: What a process may grow by itself: its allocator's slack, its connections.
SLACK = 24 * MIB
FROZEN = ("overloaded", "adapter_down")


def refused(reply: Reply) -> bool:
    """Typed, and with a time to come back."""
    return (
        reply.status == 503 and reply.kind in FROZEN and b"\r\nretry-after: 1\r\n" in reply.headers
    )


async def announced(sender: Sender, go_on: asyncio.Event) -> Reply:
    """A request whose body comes when it may: until then there was room for it."""
    async with sender.connected() as (reader, writer):
        writer.write(sender.head(BODY))
        await go_on.wait()
        with suppress(ConnectionError):  # it is refused: the reply says why
            for piece in sender.pieces(BODY):
                writer.write(piece)
                await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return Reply(int(head.split(b" ", 2)[1]), head, await reader.readexactly(size), BODY)


@row(
    19,
    "the queue process is frozen while clients flood the worker",
    seen="beyond `queue.max_jobs` + `model.max_connections` requests a 503 `overloaded` at once;"
    " those that wait get their answer when it goes on, or a 503 `adapter_down` after their queue"
    " time, at most 30 s; each with Retry-After",
    does="holds no more requests than may wait and run, each with its body twice at most (as it"
    " came, and in the message that nobody takes), and no more than `limits.buffered_bytes`",
)
def test_row_19_a_frozen_adapter_and_a_flood(tmp_path: Path) -> None:
    settings = (
        *SMALL, f"queue.max_jobs={MAX_JOBS}", f"model.max_connections={MAX_RUNNING}",
        "restart.missed_beats=100000",
        "limits.spool_bytes=0", "limits.buffered_bytes=67108864", "limits.body_bytes=1048576",
    )  # fmt: skip
    with running(tmp_path, settings=settings) as worker, clients() as start:
        sender = Sender(worker.url, worker.auth())
        with watched(worker) as peaks:
            adapter = worker.kill("backend_adapter", signal.SIGSTOP)
            try:
                go_on = asyncio.Event()
                early = [start(announced(sender, go_on)) for _ in range(2 * UNANSWERED)]
                gauges = worker.members()["ingress-0"]["gauges"]
                wait_until(
                    lambda: worker.members()["ingress-0"]["gauges"]["connections"] >= len(early),
                    what=f"every head to come: {gauges}",
                )
                start(_set(go_on)).result(30)
                tasks = [*early, *(start(sender.post(BODY)) for _ in range(8 * UNANSWERED))]
                held = []

                def all_but_those_that_wait() -> bool:
                    held.append(worker.members()["ingress-0"]["gauges"]["in_flight"])
                    return held[-1] > 0 and sum(not task.done() for task in tasks) <= held[-1]

                wait_until(all_but_those_that_wait, 60.0, "the others to be refused")
                assert 0 < max(held) <= UNANSWERED
            finally:
                worker.kill("backend_adapter", signal.SIGCONT)
            replies = [task.result(60) for task in tasks]
        assert all(reply.kind == "ok" or refused(reply) for reply in replies)
        assert sum(reply.kind == "overloaded" for reply in replies) >= len(tasks) - UNANSWERED
        assert peaks.grown("ingress-0") < 2 * UNANSWERED * BODY + SLACK, peaks.highest
        peaks.assert_as_stated()
        assert start(sender.post(10)).result(30).kind == "ok"
        assert worker.pid("backend_adapter") == adapter, "nobody has killed it"
        wait_until(lambda: worker.members()["ingress-0"]["gauges"]["in_flight"] == 0)


async def _set(event: asyncio.Event) -> None:
    event.set()
