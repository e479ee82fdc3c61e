"""What a producer leaves to its successor: the file, and the order in which it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from reporter import daybook as daybook_room
from reporter import producer as producer_room
from reporter.daybook import Daybook
from reporter.messages import Ack, Events, Outcome, ToReporter, Totals
from reporter.producer import Producer
from supervisor import wire
from tests.kit.wait import wait_until_async

NAME = "ingress-0"


def batch(seq: int, epoch: int = 1, size: int = 0) -> Events:
    return Events(NAME, epoch, seq, [], [], Totals(received=seq), {"x" * size: 1} if size else {})


def daybook(directory: Path) -> Daybook:
    return Daybook(f"ipc://{directory}/events", NAME)


def left(directory: Path) -> list[Events]:
    """What a successor would find."""
    other = daybook(directory)
    try:
        return other.open()
    finally:
        other.close()


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    file = daybook(tmp_path)
    assert file.open() == []
    for seq in (1, 2, 3):
        file.append(batch(seq))
    assert left(tmp_path) == [batch(1), batch(2), batch(3)]
    assert os.stat(tmp_path / f"accounts_{NAME}").st_mode & 0o777 == 0o600
    file.rewrite([batch(3), batch(1, epoch=2)])
    file.append(batch(2, epoch=2))
    assert left(tmp_path) == [batch(3), batch(1, epoch=2), batch(2, epoch=2)]
    file.clear()
    assert left(tmp_path) == []
    file.append(batch(4))
    assert left(tmp_path) == [batch(4)]
    assert os.listdir(tmp_path) == [f"accounts_{NAME}"]


def test_a_batch_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    file = daybook(tmp_path)
    file.open()
    file.append(batch(1))
    file.append(batch(2))
    path = tmp_path / f"accounts_{NAME}"
    whole = path.read_bytes()
    for size in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:size])
        assert left(tmp_path) == [batch(1)]
    path.write_bytes(whole[:4] + b"\xc1" * (len(whole) // 2 - 4) + whole[len(whole) // 2 :])
    assert left(tmp_path) == [batch(2)]


def test_it_says_when_it_is_time_to_leave_out_what_was_confirmed(tmp_path: Path) -> None:
    file = daybook(tmp_path)
    file.open()
    seq = 0
    while not file.full:
        seq += 1
        file.append(batch(seq, size=2**20))
    assert seq * 2**20 <= daybook_room.MAX_BYTES + 2**20
    file.rewrite([batch(seq)])
    assert not file.full
    assert left(tmp_path) == [batch(seq)]


def test_a_disk_that_fails_costs_no_more_than_the_file(tmp_path: Path) -> None:
    nowhere = daybook(tmp_path / "gone")
    assert nowhere.open() == []
    nowhere.append(batch(1))
    nowhere.rewrite([batch(1)])
    nowhere.clear()
    file = daybook(tmp_path)
    file.open()
    file.append(batch(1))
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, file._fd)  # every write fails from now on
    os.close(full)
    file.append(batch(2))
    file.append(batch(3))
    assert left(tmp_path) == [batch(1)]  # nothing behind a gap
    file.rewrite([batch(2), batch(3)])
    file.append(batch(4))
    assert left(tmp_path) == [batch(2), batch(3), batch(4)]


class Scene:
    """A reporter that confirms when it is told to."""

    def __init__(self, directory: Path) -> None:
        self._address = f"ipc://{directory}/events"
        self.heard: list[tuple[int, int]] = []
        self.server = wire.Server(self._address, ToReporter, self._on_messages)

    def _on_messages(self, peer: str, messages: list[Any]) -> None:
        self.heard += [(m.epoch, m.seq) for m in messages if isinstance(m, Events)]

    async def life(self, requests: int) -> Producer:
        """Another process of the same name, which ends so many requests in batches of one."""
        life = Producer(self._address, NAME)
        life.start()
        life.flush()
        for number in range(requests):
            key = life.ledger.open(number, 1.0, 1.0)
            life.ledger.close(key, Outcome.SUCCESS, 2.0, route="/a", status=200)
            life.flush()
        await wait_until_async(lambda: life.up, what="a session")
        return life

    async def confirm(self, epoch: int, seq: int) -> None:
        await wait_until_async(lambda: (epoch, seq) in self.heard, what="the batch")
        self.server.send(NAME, Ack(seq, epoch))


def play(tmp_path: Path, scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Scene(tmp_path)
        try:
            await scene(stage)
        finally:
            stage.server.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_successor_tells_first_what_those_before_it_have_left(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        first = await stage.life(2)
        await stage.confirm(first.ledger.epoch, 3)
        first.close()
        second = await stage.life(1)  # dies, too, before anything was confirmed
        second.close()
        assert [e.epoch for e in left(tmp_path)] == [first.ledger.epoch] * 3 + [
            second.ledger.epoch
        ] * 2
        third = await stage.life(1)
        lives = [life.ledger.epoch for life in (first, second, third)]
        await stage.confirm(lives[0], 3)
        await stage.confirm(lives[1], 1)
        await stage.confirm(lives[1], 2)
        await wait_until_async(lambda: (lives[2], 2) in stage.heard, what="its own")
        order = [epoch for epoch, _ in stage.heard]
        assert order == sorted(order, key=lives.index)  # a dead one never after its successor
        assert {events.epoch for events in left(tmp_path)} == {lives[2]}
        await stage.confirm(lives[2], 2)
        await third.settle(asyncio.get_running_loop().time() + 30)
        assert left(tmp_path) == []
        third.close()

    play(tmp_path, scene)


def test_what_nobody_will_ever_confirm_is_given_up(tmp_path: Path, monkeypatch: Any) -> None:
    async def scene(stage: Scene) -> None:
        first = await stage.life(1)
        first.close()
        second = await stage.life(1)
        second.flush()
        assert second.ledger.epoch not in {epoch for epoch, _ in stage.heard}
        monkeypatch.setattr(producer_room, "INHERITED_S", -1.0)
        second.flush()
        await stage.confirm(second.ledger.epoch, 2)
        await second.settle(asyncio.get_running_loop().time() + 30)
        assert left(tmp_path) == []
        second.close()

    play(tmp_path, scene)
