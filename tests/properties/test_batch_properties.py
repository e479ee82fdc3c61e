"""What is packed is unpacked; whatever else arrives is malformed, and never another error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapter.messages import Cancel, Chunk, Submit, ToAdapter
from ingress.responses import JOIN_BYTES
from supervisor import batch
from supervisor.batch import Backlog, Malformed, pack, pack_all, unpacker

unpack = unpacker(ToAdapter)
sizes = st.sampled_from([0, 1, 1000, 65_535, 65_536, 65_537, 200_000, 700_000])


def submit_of(number: int, size: int) -> Submit:
    body = bytes([number % 256]) * size
    return Submit(number, "/p", "lane", 0, 1.0, 1.0, float("inf"), 1, body=body)


submits = st.builds(submit_of, st.integers(0, 2**60), sizes)
messages = st.lists(submits | st.builds(Cancel, st.integers(0, 2**60)), max_size=12)
numbers = st.integers(0, 2**63)


def numbered() -> Any:
    seqs = iter(range(1, 1_000_000))
    return lambda: (5, 6, next(seqs))


@given(st.tuples(numbers, numbers, numbers), messages)
def test_a_batch_there_and_back(header: tuple[int, int, int], sent: list[Any]) -> None:
    before = [id(message) for message in sent]
    assert unpack(pack(header, sent)) == (header, sent)
    assert [id(message) for message in sent] == before  # the caller's list is its own


@given(st.lists(messages, max_size=4))
def test_many_batches_keep_the_order_and_their_size(ticks: list[list[Any]]) -> None:
    number = numbered()
    frames = [each for tick in ticks for each in pack_all(number, tick)]
    unpacked = [unpack(each) for each in frames]
    assert [header for header, _ in unpacked] == [(5, 6, n + 1) for n in range(len(frames))]
    assert [m for _, ms in unpacked for m in ms] == [m for tick in ticks for m in tick]
    for each, (_, packed) in zip(frames, unpacked):
        assert len(each) <= batch.BATCH_BYTES or len(packed) == 1


def test_a_batch_is_split_by_bytes_and_by_count() -> None:
    small = [Cancel(n) for n in range(2 * batch.BATCH_LIMIT + 1)]
    counts = [len(unpack(each)[1]) for each in pack_all(numbered(), small)]
    assert counts == [batch.BATCH_LIMIT, batch.BATCH_LIMIT, 1]
    bulky = [Submit(n, "/p", "l", 0, 1.0, 1.0, 1.0, 1, headers=b"x" * 200_000) for n in range(9)]
    batches = [unpack(each)[1] for each in pack_all(numbered(), bulky)]
    assert [m.id for part in batches for m in part] == list(range(9))
    assert max(map(len, batches)) == 2
    widths = [50_000] * 11 + [batch.ALONE_BYTES + 1, 1, 300_000, 300_000, 1, 1]
    mixed = [submit_of(n, size) for n, size in enumerate(widths)]
    batches = [unpack(each)[1] for each in pack_all(numbered(), mixed)]
    together = [[m.id for m in part] for part in batches]
    assert together == [[*range(10)], [10], [11], [12], [13], [14], [15, 16]]
    assert list(pack_all(numbered(), [])) == []


def test_a_body_may_be_a_view_of_its_frame() -> None:
    read = unpacker(Chunk)
    frame = pack((1, 2, 3), [Chunk(1, memoryview(b"x" * 100_000))])
    (chunk,) = read(memoryview(frame))[1]
    assert JOIN_BYTES >= batch.ALONE_BYTES, "who copies only small views keeps nobody else's bytes"
    assert chunk.body.obj is frame and chunk == Chunk(1, memoryview(b"x" * 100_000))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_batch_or_malformed(frame: bytes) -> None:
    try:
        header, _ = unpack(frame)
    except Malformed:
        return
    assert len(header) == 3


@given(messages, st.data())
def test_a_damaged_batch_is_a_batch_or_malformed(sent: list[Any], data: st.DataObject) -> None:
    frame = bytearray(pack((1, 2, 3), sent))
    place = data.draw(st.integers(0, min(len(frame), 200) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(place + 1, len(frame))) :]
    try:
        unpack(bytes(frame))
    except Malformed:
        pass


def test_nonsense_is_malformed() -> None:
    frame = pack((1, 2, 3), [submit_of(1, 70_000)])
    with pytest.raises(Malformed):
        unpack(b"")
    with pytest.raises(Malformed, match="utf-8"):
        unpack(frame.replace(b"/p", b"\xff\xfe"))
    with pytest.raises(Malformed):
        unpack(b"\x91" * 100_000)
    with pytest.raises(Malformed, match="truncated"):
        unpack(frame[:-1])


class Pipe:
    """Room for some batches."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[int] = []

    def put(self, frame: bytes) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.sent.append(unpack(frame)[0][2])
        return True


@given(st.lists(st.sampled_from(["message", "flush", "offer", "room", "unblock"]), max_size=60))
def test_a_backlog_keeps_the_order_whatever_room_there_is(actions: list[str]) -> None:
    pipe, number = Pipe(2), numbered()
    backlog = Backlog(pipe.put)
    for action in actions:
        if action == "message":
            backlog.messages.append(Cancel(1))
        elif action == "flush":
            backlog.flush(number)
        elif action == "offer":
            backlog.offer(pack(number()))
        elif action == "room":
            pipe.room += 3
        else:
            backlog.unblock()
    backlog.flush(number)
    pipe.room = 1000
    backlog.unblock()
    last = number()[2]
    assert pipe.sent == list(range(1, last))
    assert not backlog.waiting and not backlog.messages


def test_a_backlog_may_be_cleared_while_it_sends() -> None:
    """The client turned out to be gone, and its session ended inside ``put``."""
    tried: list[bytes] = []

    def put(frame: bytes) -> bool:
        tried.append(frame)
        if len(tried) == 2:
            backlog.clear()
        return len(tried) > 1

    backlog = Backlog(put)
    for seq in range(4):
        backlog.offer(pack((1, 2, seq)))
    assert len(backlog.waiting) == 4
    backlog.unblock()
    assert len(tried) == 2
    assert not backlog.waiting
