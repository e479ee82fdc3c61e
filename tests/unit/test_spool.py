"""Bodies in files: written whole or refused, found again to the byte, gone with their owner."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend_adapter.file_body import PIECE_BYTES, PIECES_A_TURN, Feeder
from backend_adapter.messages import FilePart
from ingress.errors import ErrorKind, Problem
from ingress.slow_readers import LOOK_EVERY_S, SlowReaders
from ingress.spool import Spool, payload_of, whole_of
from tests.kit.wait import wait_until_async


class Envelope(msgspec.Struct):
    payload: msgspec.Raw


def test_a_part_is_found_where_it_lies_and_not_where_the_same_bytes_lie(tmp_path: Path) -> None:
    payload = b'{"a": 1}'
    body = b'{"decoy": ' + payload + b', "payload": ' + payload + b"  }"
    file = Spool(str(tmp_path / "made" / "late"), "ingress-0").open(len(body))
    file.write(body[:7])
    file.write(bytearray(body[7:]))
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
    file.remove()
    file.remove()
    assert not Path(part.path).exists()
    assert bytes(found) == payload  # who has mapped it reads on


def test_what_an_earlier_life_left_is_swept_and_nobody_elses(tmp_path: Path) -> None:
    spool, other = Spool(str(tmp_path), "ingress-1"), Spool(str(tmp_path), "ingress-10")
    Spool(str(tmp_path / "nowhere"), "ingress-1").sweep()
    left, kept = spool.open(10), other.open(10)
    assert left.whole().path != spool.open(10).whole().path
    Spool(str(tmp_path), "ingress-1").sweep()
    assert [str(path) for path in tmp_path.iterdir()] == [kept.whole().path]


def test_a_disk_that_takes_nothing_is_a_typed_refusal(tmp_path: Path, monkeypatch: Any) -> None:
    spool = Spool(str(tmp_path), "ingress-0")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = spool.open(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for refused in (lambda: spool.open(5000), lambda: file.write(b"x" * 5000)):
            with pytest.raises(Problem) as caught:
                refused()
            assert caught.value.kind is ErrorKind.MEMORY
            assert caught.value.retry_after_s
            assert str(tmp_path) not in caught.value.message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [str(path) for path in tmp_path.iterdir()] == [file.whole().path]
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(Problem, match="no room on its disk"):
        Spool(str(tmp_path / "file" / "below"), "ingress-0").open(0)


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
