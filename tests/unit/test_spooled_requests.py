"""The HTTP server with bodies in files: what it counts and what it leaves behind, whatever ends a
request, and wherever its body was just then."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ingress.errors import ErrorKind
from ingress.http import Exchange, Server
from ingress.intake import SMALL_HEAD_BYTES
from ingress.spool import COALESCE_BYTES, Spool
from supervisor import file_limit
from supervisor.settings import LimitSettings
from tests.kit.wait import DEADLINE_S, wait_until_async
from tests.unit.test_http_server import App, Rig, chunked, post

LARGE = 20_000


def files(directory: Path) -> list[Path]:
    """Bodies that lie there."""
    return list(directory.glob("*")) if directory.exists() else []


def open_files(directory: Path) -> list[str]:
    """What of this process is open there."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.exists(link)
            and os.readlink(link).startswith(str(directory))]  # fmt: skip


def serve(
    scenario: Callable[[Rig, Spool, Path], Awaitable[None]], directory: Path, **limits: Any
) -> None:
    """Run it against a server that spools; at its end nothing is counted, open or left."""

    async def main() -> None:
        app, loop = App(), asyncio.get_running_loop()
        spool = partial(Spool, str(directory), "ingress-0", loop)
        server = Server(app, LimitSettings(large_bytes=LARGE, **limits), loop, spool)
        rig = Rig(app, server, await server.listen("127.0.0.1", 0))
        loop.set_exception_handler(lambda _, context: rig.faults.append(context))
        made = server._shared.intake._spool
        assert made is not None
        try:
            await scenario(rig, made, directory)
            for writer in rig._writers:
                writer.close()
            app.requests.clear()
            app.gone.clear()
            await wait_until_async(lambda: not server.connections and not server.spooled_bytes)
            assert server.buffered_bytes == made.waiting_bytes == made._promised_bytes == 0
            assert files(directory) == open_files(directory) == []
        finally:
            await rig.close()
            made._thread.join()
        assert rig.faults == []

    uvloop.run(main())


def test_a_chunked_body_that_finds_no_file_gives_its_memory_back_once(tmp_path: Path) -> None:
    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        size = LARGE - 1
        reader, writer = await rig.connect()
        writer.write(chunked(b"%x\r\n" % size, b"a" * size, b"\r\n"))
        await wait_until_async(lambda: rig.server.buffered_bytes == size)
        spool._free_bytes = lambda: -1.0  # type: ignore[method-assign]
        writer.write(b"%x\r\n" % LARGE + b"a" * LARGE)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"kind":"memory"' in answer
        assert rig.server.buffered_bytes == 0

    serve(scenario, tmp_path)


@pytest.mark.parametrize("large", [False, True])
def test_a_large_head_counts_while_its_body_comes_in_chunks(tmp_path: Path, large: bool) -> None:
    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        size = LARGE + 1 if large else 100
        _, writer = await rig.connect()
        head = chunked().removesuffix(b"\r\n") + b"x-large: " + b"x" * 50_000 + b"\r\n\r\n"
        assert len(head) > SMALL_HEAD_BYTES
        writer.write(head + b"%x\r\n" % size + b"a" * size)
        in_memory = len(head) + (0 if large else size)
        await wait_until_async(lambda: rig.server.buffered_bytes == in_memory)
        assert rig.server.spooled_bytes == (size if large else 0)

    serve(scenario, tmp_path)


def stalled(spool: Spool) -> threading.Event:
    """The disk takes nothing until it is set."""
    go, create = threading.Event(), spool.create

    def wait_and_create(path: str) -> int:
        go.wait(30.0)
        return create(path)

    spool.create = wait_and_create  # type: ignore[method-assign]
    return go


def test_tiny_chunks_that_wait_for_the_disk_cost_what_they_hold(tmp_path: Path) -> None:
    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        go = stalled(spool)
        try:
            body = bytes(range(256)) * 300
            _, writer = await rig.connect()
            head = b"POST /hold HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            chunks = [b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body), 2)]
            writer.write(head + b"".join(chunks))
            await wait_until_async(lambda: rig.server.spooled_bytes == len(body))
            (connection,) = rig.server._shared.connections
            file = connection._framer.request.file
            assert file is not None and file.waiting_bytes == len(body)
            assert len(file._batch) + len(file._pieces) <= len(body) // COALESCE_BYTES + 2
        finally:
            go.set()
        writer.write(b"0\r\n\r\n")
        exchange = await rig.held()
        assert bytes(exchange.body) == body
        exchange.respond(200, b"")

    serve(scenario, tmp_path)


def test_a_file_that_cannot_be_closed_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system tells at the close that it is full."""
    closed: list[int] = []
    close = os.close

    def full(fd: int) -> None:
        if threading.current_thread().name == "spool":
            closed.append(fd)
            close(fd)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        close(fd)

    monkeypatch.setattr(os, "close", full)

    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        _, writer = await rig.connect()
        writer.write(post(b"/hold", b"a" * 2 * LARGE))
        exchange = await rig.held()
        exchange.respond(200, b"")
        await wait_until_async(lambda: not rig.server.spooled_bytes)
        assert len(closed) == 1

    serve(scenario, tmp_path)


def test_who_removes_the_directory_of_the_files_is_no_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        _, writer = await rig.connect()
        writer.write(post(b"/hold", b"a" * 2 * LARGE))
        exchange = await rig.held()
        shutil.rmtree(directory)
        exchange.respond(200, b"")
        await wait_until_async(lambda: not rig.server.spooled_bytes)
        assert not caplog.records

    serve(scenario, tmp_path / "spool")


def test_there_are_descriptors_for_as_many_bodies_as_clients(tmp_path: Path) -> None:
    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        writers = [(await rig.connect())[1] for _ in range(3)]
        for writer in writers:
            writer.write(post(b"/hold", b"a" * 2 * LARGE)[:-1])
        await wait_until_async(lambda: len(files(directory)) == 3 and not spool.waiting_bytes)
        assert len(open_files(directory)) == 3
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        try:
            rig.server._timer.cancel()  # type: ignore[union-attr]
            rig.server._tick()
            assert 2 * rig.server._shared.max_connections <= 1024 - file_limit.RESERVED
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    serve(scenario, tmp_path)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_disk_that_hangs_is_not_its_clients_fault(tmp_path: Path, missing: int) -> None:
    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        go = stalled(spool)
        try:
            rig.server._timer.cancel()  # type: ignore[union-attr]
            size = 2 * LARGE
            reader, writer = await rig.connect()
            writer.write(post(b"/hold", b"a" * size)[: -missing or None])
            await wait_until_async(lambda: spool.waiting_bytes == size - missing)
            now = time.monotonic()
            rig.server.sweep(now)
            rig.server.sweep(now + rig.server._shared.limits.body_timeout_s)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: " in head
            assert rig.server.refused == {ErrorKind.MEMORY: 1}
        finally:
            go.set()

    serve(scenario, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("link", [False, True])
def test_no_body_lies_in_a_directory_of_somebody_else(tmp_path: Path, link: bool) -> None:
    place = tmp_path / "spool"
    if link:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
    os.chown(place, 65534, 65534, follow_symlinks=False)

    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        answer = await rig.talk(post(b"/hold", b"a" * 2 * LARGE))
        assert answer.startswith(b"HTTP/1.1 503 ") and b"is somebody else" in answer
        assert not rig.app.requests

    serve(scenario, place)


class Restless(App):
    """Answers, replaces bodies and keeps clients waiting, as it happens."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.held: list[Exchange] = []
        self.requests_seen = 0

    def on_request(self, exchange: Exchange) -> None:
        self.requests_seen += 1
        assert bytes(exchange.body) == b"a" * int(exchange.query)
        if exchange.path == b"/crash":
            raise RuntimeError
        self.held.append(exchange)
        if exchange.path == b"/replace":
            exchange.replace_body(b"b" * self.chance.choice([10, LARGE]))
        exchange.release_body()

    def on_disconnect(self, exchange: Exchange) -> None:
        self.held.remove(exchange)

    def answer_some(self) -> None:
        for exchange in self.held[:]:
            if exchange.ended:
                self.held.remove(exchange)
            elif self.chance.random() < 0.5:
                self.held.remove(exchange)
                exchange.respond(200, b"", b"c" * self.chance.choice([1, 100_000]))


def request(chance: random.Random) -> bytes:
    """One of many shapes, sometimes with another behind it."""
    size = chance.choice([0, 10, 15_000, LARGE + 1, 400_000])
    line = b"POST %b?%d HTTP/1.1\r\nHost: a\r\n"
    head = line % (chance.choice([b"/crash", b"/hold", b"/hold", b"/replace", b"/refused"]), size)
    head += b"x-large: " + b"x" * chance.choice([0, 6_000, 40_000]) + b"\r\n"
    if chance.random() < 0.5:
        whole = head + b"content-length: %d\r\n\r\n" % size + b"a" * size
    else:
        whole = head + b"transfer-encoding: chunked\r\n\r\n"
        while size:
            part = min(size, chance.choice([size, 5_000, 70_000]))
            whole += b"%x\r\n%b\r\n" % (part, b"a" * part)
            size -= part
        whole += b"0\r\n\r\n"
    if chance.random() < 0.2:
        whole += line % (b"/hold", 1) + b"content-length: 1\r\n\r\na"
    return whole


async def visit(rig: Rig, chance: random.Random) -> None:
    """Send one, piece by piece; read what comes, or leave in the midst of it."""
    reader, writer = await rig.connect()
    data = request(chance)
    complete = chance.random() < 0.7
    if not complete:
        data = data[: chance.randrange(1, len(data))]
    while data and not writer.transport.is_closing():
        size = chance.choice([len(data), 1_000, 70_000])
        writer.write(data[:size])
        data = data[size:]
        await asyncio.sleep(chance.choice([0, 0, 0.001]))
        if chance.random() < 0.03:
            writer.transport.abort()
    if complete and chance.random() < 0.8:
        with suppress(ConnectionError):
            head = await asyncio.wait_for(reader.readline(), DEADLINE_S)
            assert not head or head.startswith(b"HTTP/1.1 ")
    writer.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_any_order_of_events_nothing_stays_behind(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients come, leave and pipeline while the disk is slow, full, refuses, or is well."""
    caplog.set_level(logging.CRITICAL + 1)
    chance = random.Random(seed)

    async def scenario(rig: Rig, spool: Spool, directory: Path) -> None:
        app, limits = Restless(chance), rig.server._shared.limits
        rig.server._shared.app = app
        budget = rig.server._shared.intake.budget
        create, free = spool.create, spool._free_bytes
        state = "well"

        def troubled(path: str) -> int:
            if state == "slow":
                time.sleep(0.01)
            elif state == "refuses":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return create(path)

        spool.create = troubled  # type: ignore[method-assign]
        spool._free_bytes = lambda: -1.0 if state == "full" else free()  # type: ignore[method-assign]
        visitors: set[asyncio.Task[None]] = set()
        for _ in range(400):
            if len(visitors) < 20:
                visitors.add(asyncio.create_task(visit(rig, chance)))
            await asyncio.sleep(0.001)
            app.answer_some()
            assert 0 <= budget.memory <= limits.buffered_bytes
            assert 0 <= budget.disk <= limits.spool_bytes
            if chance.random() < 0.05:
                state = chance.choice(["well", "slow", "full", "refuses"])
            for done in [task for task in visitors if task.done()]:
                done.result()
                visitors.discard(done)
        while visitors:
            _, visitors = await asyncio.wait(visitors, timeout=0.001)
            app.answer_some()
        assert app.requests_seen > 50

    serve(scenario, tmp_path, buffered_bytes=150_000, spool_bytes=1_000_000)
