"""Bodies in files: written whole or refused, found again to the byte, gone with their owner."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend_adapter.file_body import PIECE_BYTES, PIECES_A_TURN, Feeder
from backend_adapter.messages import FilePart
from ingress.budget import Budget
from ingress.errors import ErrorKind, Problem
from ingress.slow_readers import LOOK_EVERY_S, SlowReaders
from ingress.spool import BEHIND_BYTES, TURN_BYTES, Spool, SpoolFile, payload_of, whole_of
from tests.kit.wait import wait_until_async

MEMORY = 100_000


class Envelope(msgspec.Struct):
    payload: msgspec.Raw


@asynccontextmanager
async def spooling(
    directory: Path, name: str = "ingress-0", memory: int = MEMORY
) -> AsyncIterator[Spool]:
    """A spool; at its end nothing waits, and nothing is counted."""
    budget = Budget(memory, 10**9, 1)
    spool = Spool(str(directory), name, asyncio.get_running_loop(), budget)
    try:
        yield spool
    finally:
        spool.close()
        spool._thread.join()
    await wait_until_async(lambda: spool.waiting_bytes == 0)
    assert budget.memory == 0


async def written(file: SpoolFile) -> None:
    await wait_until_async(lambda: file.waiting_bytes == 0)


async def removed(file: SpoolFile) -> None:
    gone: list[bool] = []
    file.remove(lambda: gone.append(True))
    await wait_until_async(lambda: gone)
    assert gone == [True]


def test_a_part_is_found_where_it_lies_and_not_where_the_same_bytes_lie(tmp_path: Path) -> None:
    payload = b'{"a": 1}'
    body = b'{"decoy": ' + payload + b', "payload": ' + payload + b"  }"

    async def scenario() -> None:
        async with spooling(tmp_path / "made" / "late") as spool:
            file = spool.open(len(body))
            file.write(body[:7])
            file.write(bytearray(body[7:]))
            await written(file)
            mapped = file.map()
            found = msgspec.json.decode(mapped, type=Envelope).payload
            part = file.part(mapped, found)
            assert (part.offset, part.size) == (body.rindex(payload), len(payload))
            assert Path(part.path).read_bytes()[part.offset :][: part.size] == payload
            assert payload_of(found, mapped, file) == (b"", part)
            assert whole_of(mapped, file) == (b"", FilePart(part.path, 0, len(body)))
            assert payload_of(msgspec.Raw(payload), body, None) == (payload, None)
            assert whole_of(body, None) == (body, None)
            assert Path(part.path).stat().st_mode & 0o777 == 0o600
            await removed(file)
            assert not Path(part.path).exists()
            assert bytes(found) == payload  # who has mapped it reads on

    asyncio.run(scenario())


def test_what_an_earlier_life_left_is_swept_and_nobody_elses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            spooling(tmp_path, "ingress-1") as spool,
            spooling(tmp_path, "ingress-10") as ten,
        ):
            left, kept, unused = spool.open(10), ten.open(10), spool.open(10)
            assert left.whole().path != unused.whole().path
            for file in (left, kept):
                file.write(b"0123456789")
                await written(file)
            async with spooling(tmp_path, "ingress-1"):
                await wait_until_async(lambda: not os.path.exists(left.whole().path))
            assert [str(path) for path in tmp_path.iterdir()] == [kept.whole().path]
            for file in (left, kept, unused):
                await removed(file)

    asyncio.run(scenario())


def test_a_disk_that_takes_nothing_is_a_typed_refusal(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scenario() -> None:
        (tmp_path / "file").write_text("no directory")
        async with spooling(tmp_path) as spool, spooling(tmp_path / "file" / "below") as nowhere:
            with pytest.raises(Problem, match="it is full"):
                spool.open(2**60)
            promised = spool.open(2**20)
            assert spool._promised_bytes == 2**20
            await removed(promised)
            assert spool._promised_bytes == 0
            for place in (spool, nowhere):
                file, told = place.open(0), []
                file.moved = partial(told.append, True)
                file.write(b"x" * 5000)
                await wait_until_async(lambda told=told: told)
                problem = file.problem
                assert problem is not None and problem.kind is ErrorKind.MEMORY
                assert problem.retry_after_s and str(tmp_path) not in problem.message
                await removed(file)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        asyncio.run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_waits_for_a_slow_disk_is_counted_and_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = threading.Event()
        async with spooling(tmp_path, memory=2 * BEHIND_BYTES) as spool:
            create = spool.create

            def wait_and_create(path: str) -> int:
                slow.wait(30.0)
                return create(path)

            spool.create = wait_and_create  # type: ignore[method-assign]
            file = spool.open(0)
            pieces = [bytes([number]) * (BEHIND_BYTES // 3) for number in range(5)]
            for piece in pieces:
                file.write(piece)
            assert file.behind
            assert spool.waiting_bytes == file.waiting_bytes == sum(map(len, pieces))
            with pytest.raises(Problem, match="too slow"):
                file.write(pieces[0] * 2)
            slow.set()
            await written(file)
            assert not file.behind
            assert Path(file.whole().path).read_bytes() == b"".join(pieces)
            await removed(file)

    asyncio.run(scenario())


def test_the_loop_has_its_turn_between_two_large_bodies_that_are_read(tmp_path: Path) -> None:
    """Reading one takes its time; many that end at once must not stop the heartbeat."""

    async def scenario() -> None:
        async with spooling(tmp_path, memory=10**8) as spool:
            turns: list[int] = []
            turn = 0

            def count() -> None:
                nonlocal turn
                turn += 1
                asyncio.get_running_loop().call_soon(count)

            def read() -> None:
                turns.append(turn)
                if len(turns) == 2:
                    raise ValueError("costs its own request")

            loop = asyncio.get_running_loop()
            raised: list[Any] = []
            loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
            files = [spool.open(0) for _ in range(5)]
            for file in files:
                file.write(b"a" * TURN_BYTES)
                await written(file)
                file.moved = read
            count()
            for file in files:
                file.finish()
            assert not turns
            await wait_until_async(lambda: len(turns) == 5)
            assert len(set(turns)) == 5 and len(raised) == 1
            small, last = spool.open(0), spool.open(0)
            for file in (small, last):
                file.write(b"a")
                file.moved = read
                file.finish()  # before it is written
            assert len(turns) == 5
            await wait_until_async(lambda: len(turns) == 7)
            for file in (*files, small, last):
                await removed(file)
            assert len(turns) == 7

    asyncio.run(scenario())


class Wire:
    """A transport that takes so many pieces, then asks for patience."""

    def __init__(self, room: int) -> None:
        self.taken = bytearray()
        self.room = room
        self.feeder: Feeder

    def write(self, piece: bytes) -> None:
        assert len(piece) <= PIECE_BYTES
        self.taken += piece
        self.room -= 1
        if not self.room:
            self.feeder.pause()


def feeder(part: FilePart, room: int, failed: list[str]) -> tuple[Feeder, Wire]:
    wire: Any = Wire(room)
    made = Feeder(part, wire, asyncio.get_running_loop(), failed.append)
    wire.feeder = made
    return made, wire


def test_no_more_is_read_than_is_taken(tmp_path: Path) -> None:
    body = os.urandom(PIECE_BYTES * (PIECES_A_TURN + 4) + 5)
    path = tmp_path / "body"
    path.write_bytes(b"before" + body + b"after")
    part = FilePart(str(path), 6, len(body))

    async def scenario() -> None:
        failed: list[str] = []
        made, wire = feeder(part, 3, failed)
        assert len(part) == len(body)
        made.start()
        path.unlink()  # its owner is gone: it is open
        for _ in range(5):
            await asyncio.sleep(0)
        assert wire.taken == body[: 3 * PIECE_BYTES]
        wire.room = 1
        made.resume()
        assert len(wire.taken) == 4 * PIECE_BYTES
        wire.room = 10**9
        made.resume()
        assert not made.done  # the loop has its turn in between
        await wait_until_async(lambda: made.done)
        assert wire.taken == body
        made.resume()
        await asyncio.sleep(0)
        assert wire.taken == body
        assert not failed

    asyncio.run(scenario())


def test_a_body_that_cannot_be_read_is_told_later(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"12345")

    async def scenario() -> None:
        for path, size, why in (
            (tmp_path / "gone", 5, "No such file"),
            (short, 6, "shorter"),
            (tmp_path, 5, "Is a directory"),
        ):
            failed: list[str] = []
            made, _ = feeder(FilePart(str(path), 0, size), 10, failed)
            made.start()
            assert not failed
            await asyncio.sleep(0)
            assert len(failed) == 1
            assert why in failed[0]
            assert str(tmp_path) not in failed[0]
            assert not made.done

    asyncio.run(scenario())


class Client:
    """A connection with so much unsent."""

    def __init__(self, readers: SlowReaders, unsent_bytes: int) -> None:
        self.unsent_bytes = unsent_bytes
        self.cut = False
        self._readers = readers

    def abort(self) -> None:
        self.cut = True
        self._readers.discard(self)


def test_who_has_not_read_for_longest_is_cut_first_and_nobody_without_need() -> None:
    async def scenario() -> None:
        readers = SlowReaders(1000, 400, asyncio.get_running_loop())
        clients = [Client(readers, 300) for _ in range(5)]
        for client in clients[:3]:
            readers.add(client)
        await asyncio.sleep(3 * LOOK_EVERY_S)  # time passes, and three are not too many
        assert not any(client.cut for client in clients)
        readers.discard(clients[0])
        readers.add(clients[0])  # it has read something
        for client in clients[3:]:
            readers.add(client)
        await wait_until_async(lambda: readers.cut >= 2)
        assert [client.cut for client in clients] == [False, True, True, False, False]
        assert readers.held_bytes == 900
        clients[3].unsent_bytes = 400  # it grows although nobody is added
        clients[0].unsent_bytes = 350
        await wait_until_async(lambda: clients[0].cut)
        assert readers.cut == 3

    asyncio.run(scenario())
