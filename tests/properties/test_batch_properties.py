"""What is packed is unpacked; whatever else arrives is malformed, and never another error."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapter.messages import Cancel, Submit, ToAdapter
from supervisor import batch
from supervisor.batch import Backlog, Malformed, pack, pack_all, unpacker

unpack = unpacker(ToAdapter)
sizes = st.sampled_from([0, 1, 1000, 65_535, 65_536, 65_537, 200_000, 700_000])
submits = st.builds(
    lambda number, size: Submit(
        number, "/p", "lane", 0, 1.0, 1.0, float("inf"), 1, body=bytes([number % 256]) * size
    ),
    st.integers(0, 2**60),
    sizes,
)
messages = st.lists(submits | st.builds(Cancel, st.integers(0, 2**60)), max_size=12)
numbers = st.integers(0, 2**63)


def numbered() -> Any:
    seqs = iter(range(1, 1_000_000))
    return lambda: (5, 6, next(seqs))


def plain(each: Any) -> Any:
    """As it was before it was packed."""
    return msgspec.structs.replace(each, frame=0) if isinstance(each, Submit) else each


@given(st.tuples(numbers, numbers, numbers), messages)
def test_a_batch_there_and_back(header: tuple[int, int, int], sent: list[Any]) -> None:
    before = [id(message) for message in sent]
    frames = pack(header, sent)
    assert [id(message) for message in sent] == before  # the caller's list is its own
    large = [m.body for m in sent if isinstance(m, Submit) and len(m.body) > 65_536]
    assert all(frame is body for frame, body in zip(frames[1:], large, strict=True))
    got_header, got = unpack(frames)
    assert got_header == header
    assert [plain(message) for message in got] == sent


@given(st.lists(messages, max_size=4))
def test_many_batches_keep_the_order_and_their_size(ticks: list[list[Any]]) -> None:
    number = numbered()
    frames = [each for tick in ticks for each in pack_all(number, tick)]
    unpacked = [unpack(each) for each in frames]
    assert [header for header, _ in unpacked] == [(5, 6, n + 1) for n in range(len(frames))]
    assert [plain(m) for _, ms in unpacked for m in ms] == [m for tick in ticks for m in tick]
    for each, (_, packed) in zip(frames, unpacked):
        assert len(each[0]) <= batch.BATCH_BYTES or len(packed) == 1


def test_a_batch_is_split_by_bytes_and_by_count() -> None:
    small = [Cancel(n) for n in range(2 * batch.BATCH_LIMIT + 1)]
    counts = [len(unpack(each)[1]) for each in pack_all(numbered(), small)]
    assert counts == [batch.BATCH_LIMIT, batch.BATCH_LIMIT, 1]
    bulky = [Submit(n, "/p", "l", 0, 1.0, 1.0, 1.0, 1, headers=b"x" * 200_000) for n in range(9)]
    batches = [unpack(each)[1] for each in pack_all(numbered(), bulky)]
    assert [m.id for part in batches for m in part] == list(range(9))
    assert max(map(len, batches)) == 2
    assert list(pack_all(numbered(), [])) == []


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_any_bytes_are_a_batch_or_malformed(frames: list[bytes]) -> None:
    try:
        header, _ = unpack(frames)
    except Malformed:
        return
    assert len(header) == 3


@given(messages, st.data())
def test_a_damaged_batch_is_a_batch_or_malformed(sent: list[Any], data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in pack((1, 2, 3), sent)]
    place = data.draw(st.integers(0, min(len(frames[0]), 200) - 1))
    frames[0][place] = data.draw(st.integers(0, 255))
    del frames[0][data.draw(st.integers(place + 1, len(frames[0]))) :]
    try:
        unpack([bytes(frame) for frame in frames])
    except Malformed:
        pass


def test_nonsense_is_malformed() -> None:
    body = pack((1, 2, 3), [Submit(1, "/p", "l", 0, 1.0, 1.0, 1.0, 1, body=bytes(70_000))])
    with pytest.raises(Malformed):
        unpack([])
    with pytest.raises(Malformed, match="utf-8"):
        unpack([bytes(body[0]).replace(b"/p", b"\xff\xfe"), bytes(70_000)])
    with pytest.raises(Malformed):
        unpack([b"\x91" * 100_000])
    with pytest.raises(Malformed, match="missing"):
        unpack(body[:1])


class Pipe:
    """Room for some batches."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[int] = []

    def put(self, frames: batch.Frames) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.sent.append(unpack(frames)[0][2])
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
    tried: list[batch.Frames] = []

    def put(frames: batch.Frames) -> bool:
        tried.append(frames)
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
