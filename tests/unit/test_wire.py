"""The rules of the wire, each over a real ipc socket and a real uvloop."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop
import zmq

from backend_adapter.messages import Answer, Cancel, Chunk, Credit, FromAdapter, Submit, ToAdapter
from supervisor import batch, link, wire
from tests.kit.wait import wait_until, wait_until_async

MIB = 2**20
T = TypeVar("T")


@pytest.fixture
def address() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="wire-", dir="/tmp")
    yield wire.ipc_address(directory, "s")
    shutil.rmtree(directory)


_opened: list[Any] = []


def opened(end: T) -> T:
    """Close it when the test ends."""
    _opened.append(end)
    return end


def on_loop(main: Callable[[], Awaitable[None]]) -> None:
    """Run on uvloop; what a callback raised fails the test."""
    errors: list[Any] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        try:
            async with asyncio.timeout(100):
                await main()
        finally:
            while _opened:
                _opened.pop().close()

    uvloop.run(watched())
    assert errors == []


@contextmanager
def running(script: str, address: str) -> Iterator[None]:
    """Run the script in a process of its own, and kill it in the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), address], cwd=Path(__file__).parents[2]
    )
    try:
        yield
    finally:
        child.kill()
        child.wait()


class Door:
    """A server, and everything that happened to it."""

    def __init__(self, address: str, **options: Any) -> None:
        self.batches: list[tuple[str, list[Any]]] = []
        self.events: list[tuple[str, str]] = []
        self.wire = opened(
            wire.Server(
                address,
                ToAdapter,
                lambda name, messages: self.batches.append((name, messages)),
                on_up=lambda name: self.events.append(("up", name)),
                on_down=lambda name: self.events.append(("down", name)),
                **options,
            )
        )

    def ids(self, name: str | None = None) -> list[int]:
        return [m.id for who, ms in self.batches if name in (None, who) for m in ms]


class Guest:
    """A client, and everything that happened to it."""

    def __init__(self, address: str, name: str, **options: Any) -> None:
        self.batches: list[list[Any]] = []
        self.events: list[str] = []
        self.wire = opened(
            wire.Client(
                address,
                name,
                FromAdapter,
                self.batches.append,
                on_up=lambda: self.events.append("up"),
                on_down=lambda: self.events.append("down"),
                **options,
            )
        )

    def ids(self) -> list[int]:
        return [m.id for ms in self.batches for m in ms]

    async def is_up(self) -> None:
        await wait_until_async(lambda: self.wire.up, what="a session")


class Raw:
    """A client without our code: a bare DEALER that says what the test wants."""

    def __init__(self, address: str, name: str, epoch: int = 7) -> None:
        self.socket = opened(zmq.Context.instance().socket(zmq.DEALER))
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 1)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.connect(address)
        self.epoch = epoch
        self.peer = 0
        self.sent = 0

    async def greet(self) -> None:
        self.say((self.epoch, 0, 0, []))
        header = (await self.hear())[:3]
        assert header[1:] == [self.epoch, 0]
        self.peer = header[0]

    def say(self, tree: Any) -> None:
        self.socket.send(msgspec.msgpack.encode(tree))

    def send(self, *messages: Any) -> None:
        self.sent += 1
        self.say((self.epoch, self.peer, self.sent, messages))

    async def hear(self) -> list[Any]:
        await wait_until_async(lambda: self.socket.poll(0), what="an answer to a raw client")
        return list(msgspec.msgpack.decode(self.socket.recv_multipart()[0]))

    def close(self) -> None:
        self.socket.close()


def submit(job_id: int, body: bytes = b"") -> Submit:
    return Submit(job_id, "/p", "lane", 0, 1.0, 1.0, 1.0, 1, body=body)


def answer(job_id: int, body: bytes = b"") -> Answer:
    return Answer(job_id, 200, b"", 0.0, body)


def stop_ticks(*ends: wire.Client | wire.Server) -> None:
    """No timer may rescue a message that got stuck."""
    for end in ends:
        end._ticker.cancel()


# ------------------------------------------------------------------ the edge-triggered fd


def test_all_that_arrived_before_the_reader_woke_is_read(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        await raw.greet()
        stop_ticks(door.wire)
        for number in range(50):
            raw.send(Cancel(number))
        await wait_until_async(lambda: len(door.batches) == 50, what="50 batches")
        assert door.ids() == list(range(50))

    on_loop(main)


def test_a_message_that_arrives_while_we_send_is_not_stuck(address: str) -> None:
    """Every message calls forth one in the other direction, and nothing else wakes either end."""
    chains, turns = 20, 1000

    async def main() -> None:
        finished = []

        def serve(name: str, messages: list[Any]) -> None:
            for message in messages:
                server.send(name, answer(message.id))

        def again(messages: list[Any]) -> None:
            for message in messages:
                if message.id < chains * turns:
                    client.send(Cancel(message.id + chains))
                else:
                    finished.append(message.id)

        server = opened(wire.Server(address, ToAdapter, serve))
        client = opened(wire.Client(address, "c", FromAdapter, again))
        await wait_until_async(lambda: client.up)
        stop_ticks(server, client)
        for chain in range(chains):
            client.send(Cancel(chain))
            await asyncio.sleep(0)
        await wait_until_async(lambda: len(finished) == chains, 60, "the last turn")

    on_loop(main)


def test_after_every_send_the_socket_is_looked_at_again(address: str) -> None:
    """Sending takes the signal away that a message has arrived; only EVENTS still tells."""

    async def main() -> None:
        guest, door = Guest(address, "c"), Door(address)
        await guest.is_up()
        stop_ticks(door.wire, guest.wire)
        for number in range(200):
            door.wire.send("c", answer(number))
            door.wire._flush()
            # the loop does not run meanwhile, so that only the client's send can see the answer
            wait_until(lambda: guest.wire._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)
            guest.wire.send(Cancel(number))
            guest.wire._flush()
            await wait_until_async(lambda n=number: len(guest.batches) > n, what="a stuck answer")
        assert guest.ids() == list(range(200))

    on_loop(main)


def test_a_flood_does_not_starve_the_loop(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        loop = asyncio.get_running_loop()
        await raw.greet()
        flood = threading.Thread(target=lambda: [raw.send(Cancel(n)) for n in range(1500)])
        flood.start()
        flood.join()  # the loop stands still until everything is under way
        handled = [0]

        def turn() -> None:
            handled.append(len(door.batches))
            if handled[-1] < 1500:
                loop.call_soon(turn)

        loop.call_soon(turn)
        await wait_until_async(lambda: handled[-1] == 1500, what="the flood")
        in_one_turn = max(b - a for a, b in pairwise(handled))
        assert 0 < in_one_turn <= 500  # 200 for the fd, 200 for the rest
        assert door.ids() == list(range(1500))

    on_loop(main)


def test_a_callback_that_raises_costs_its_own_batch_only(address: str) -> None:
    errors: list[str] = []
    got: list[int] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: errors.append(repr(context["exception"]))
        )

        def picky(_: str, messages: list[Any]) -> None:
            if messages[0].id == 3:
                raise ValueError("three")
            got.append(messages[0].id)

        server, raw = opened(wire.Server(address, ToAdapter, picky)), Raw(address, "raw")
        await raw.greet()
        stop_ticks(server)
        for number in range(10):
            raw.send(Cancel(number))
        await wait_until_async(lambda: len(got) == 9)

    uvloop.run(main())
    assert errors == ["ValueError('three')"]
    assert got == [0, 1, 2, 4, 5, 6, 7, 8, 9]


# ------------------------------------------------------------------ batches


def test_what_one_tick_produced_is_one_message(address: str) -> None:
    async def main() -> None:
        door, guest = Door(address), Guest(address, "c")
        await guest.is_up()
        few = wire.EAGER_MESSAGES - 1
        for turn in range(2):
            for number in range(turn * few, (turn + 1) * few):
                assert guest.wire.send(Cancel(number))
                assert door.wire.send("c", answer(number))
            await wait_until_async(lambda: len(door.batches) == len(guest.batches) == turn + 1)  # noqa: B023
        assert [len(messages) for _, messages in door.batches] == [few, few]
        assert [len(messages) for messages in guest.batches] == [few, few]
        assert door.ids() == guest.ids() == list(range(2 * few))

    on_loop(main)


def test_of_a_long_tick_the_peer_hears_before_it_is_over(address: str) -> None:
    eager = wire.EAGER_MESSAGES
    count = 20 * eager + 5

    async def main() -> None:
        door, guest = Door(address), Guest(address, "c")
        await guest.is_up()
        for number in range(count):
            guest.wire.send(Cancel(number))
            door.wire.send("c", answer(number))
        await wait_until_async(lambda: len(door.ids()) == len(guest.ids()) == count)
        assert door.ids() == guest.ids() == list(range(count))
        assert [len(messages) for _, messages in door.batches] == [*[eager] * 20, 5]
        assert [len(messages) for messages in guest.batches] == [*[eager] * 20, 5]

    on_loop(main)


def test_many_bodies_of_one_tick_do_not_exceed_what_a_frame_may_hold(address: str) -> None:
    """A new session submits everything again at once: no size of it may end the session."""

    async def main() -> None:
        door, guest = Door(address, max_message_bytes=MIB), Guest(address, "c")
        await guest.is_up()
        for number in range(200):
            guest.wire.send(submit(number, b"x" * 60_000))
        await wait_until_async(lambda: len(door.ids()) == 200)
        assert door.ids() == list(range(200))
        assert guest.events == ["up"]

    on_loop(main)


def test_bodies_of_every_size_arrive_whole_and_in_order(address: str) -> None:
    sizes = [0, 1, 65_536, 65_537, 3, 10 * MIB, 65_537, 5, 200_000]
    bodies = [bytes([index]) * size for index, size in enumerate(sizes)]

    async def main() -> None:
        door, guest = Door(address), Guest(address, "c")
        await guest.is_up()
        for _ in range(3):
            for number, body in enumerate(bodies):
                guest.wire.send(submit(number, body))
                door.wire.send("c", Chunk(number, body))
            await asyncio.sleep(0)
        expected = 3 * len(sizes)
        await wait_until_async(lambda: len(door.ids()) == len(guest.ids()) == expected)
        arrived = [m for _, ms in door.batches for m in ms]
        for messages in (arrived, [m for ms in guest.batches for m in ms]):
            assert [m.id for m in messages] == 3 * list(range(len(sizes)))
            assert all(bytes(m.body) == bodies[m.id] for m in messages)

    on_loop(main)


# ------------------------------------------------------------------ what does not fit


def test_an_oversized_message_ends_its_own_session_only(address: str) -> None:
    async def main() -> None:
        door = Door(address, max_message_bytes=MIB)
        big, small = Guest(address, "big"), Guest(address, "small")
        await big.is_up()
        await small.is_up()
        big.wire.send(submit(1, bytes(2 * MIB)))
        big.wire.send(Cancel(2))
        await wait_until_async(lambda: big.events == ["up", "down", "up"], what="another session")
        small.wire.send(Cancel(3))
        big.wire.send(Cancel(4))
        await wait_until_async(lambda: sorted(door.ids()) == [3, 4])
        assert small.events == ["up"]
        assert [name for what, name in door.events if what == "down"] == ["big"]

    on_loop(main)


def test_an_oversized_answer_ends_the_clients_session_only(address: str) -> None:
    async def main() -> None:
        door, other = Door(address), Guest(address, "other")
        picky = Guest(address, "picky", max_message_bytes=MIB)
        await picky.is_up()
        await other.is_up()
        door.wire.send("picky", answer(1, bytes(2 * MIB)))
        await wait_until_async(lambda: picky.events == ["up", "down", "up"], what="another session")
        door.wire.send("picky", answer(2))
        door.wire.send("other", answer(3))
        await wait_until_async(lambda: picky.ids() == [2] and other.ids() == [3])
        assert other.events == ["up"]

    on_loop(main)


DEEP = b"\x91" * 100_000 + b"\x90"
NONSENSE: dict[str, Callable[[int, int], list[bytes]]] = {
    "empty": lambda e, p: [b""],
    "not MessagePack": lambda e, p: [b"\xc1\xff\x00"],
    "truncated": lambda e, p: [msgspec.msgpack.encode((e, p, 1, [Cancel(1)]))[:-1]],
    "no batch": lambda e, p: [msgspec.msgpack.encode({"a": 1})],
    "a huge epoch": lambda e, p: [b"\x94\xcf" + b"\xff" * 8 + b"\xc0\x01\x90"],
    "text that is not UTF-8": lambda e, p: [
        batch.pack((e, p, 1), [submit(1)]).replace(b"/p", b"\xff\xfe")
    ],
    "nested 100,000 deep": lambda e, p: [b"\x94\x07\x01\x01" + DEEP],
    "an unknown tag": lambda e, p: [msgspec.msgpack.encode((e, p, 1, [[99, 1]]))],
    "a wrong type": lambda e, p: [msgspec.msgpack.encode((e, p, 1, [[2, "one"]]))],
    "a schema too old": lambda e, p: [msgspec.msgpack.encode((e, p, 1, [[1, 5, "/p"]]))],
    "two frames": lambda e, p: [batch.pack((e, p, 1), [submit(1)]), b"body"],
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_what_does_not_decode_is_dropped_and_the_session_heals(address: str, kind: str) -> None:
    async def main() -> None:
        door, guest = Door(address), Guest(address, "good")
        await guest.is_up()
        raw = Raw(address, "raw")
        await raw.greet()
        raw.socket.send_multipart(NONSENSE[kind](raw.epoch, raw.peer))
        await wait_until_async(lambda: door.wire.malformed == 1, what="the count")
        raw.sent = 1  # the receiver must not take what follows for what is missing
        raw.send(Cancel(2))
        assert (await raw.hear())[:3] == [0, raw.epoch, 0]
        assert door.events[-1] == ("down", "raw")
        raw.epoch, raw.sent = 8, 0
        await raw.greet()
        raw.send(Cancel(3))
        guest.wire.send(Cancel(4))
        await wait_until_async(lambda: sorted(door.ids()) == [3, 4])
        assert guest.events == ["up"]

    on_loop(main)


def test_a_client_without_a_readable_name_is_dropped(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        nameless = opened(zmq.Context.instance().socket(zmq.DEALER))
        nameless.setsockopt(zmq.LINGER, 0)
        nameless.setsockopt(zmq.IDENTITY, b"\xff\xfe")
        nameless.connect(address)
        nameless.send(msgspec.msgpack.encode((1, 0, 0, [])))
        await wait_until_async(lambda: door.wire.malformed == 1)
        await raw.greet()
        assert door.wire.peers == ["raw"]

    on_loop(main)


def test_an_older_sender_whose_arrays_are_shorter_is_understood(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        await raw.greet()
        raw.send([1, 5, "/p", "lane", 0, 1.0, 1.0, 1.0, 1])  # a Submit up to its first default
        await wait_until_async(lambda: door.batches)
        assert door.batches == [("raw", [submit(5)])]
        assert door.wire.malformed == 0

    on_loop(main)


def test_a_client_drops_nonsense_and_begins_another_session(address: str) -> None:
    async def main() -> None:
        router = opened(zmq.Context.instance().socket(zmq.ROUTER))
        router.setsockopt(zmq.LINGER, 0)
        router.bind(address)
        guest = Guest(address, "c")

        async def greeted(server_epoch: int, last: int) -> int:
            while True:
                await wait_until_async(lambda: router.poll(0))
                name, frame = router.recv_multipart()
                epoch, to, _, _ = msgspec.msgpack.decode(frame)
                if to == 0 and epoch != last:
                    router.send_multipart(
                        [name, msgspec.msgpack.encode((server_epoch, epoch, 0, []))]
                    )
                    await guest.is_up()
                    return int(epoch)

        first = await greeted(11, 0)
        router.send_multipart([b"c", b"\xc1"])
        await wait_until_async(lambda: guest.wire.malformed == 1)
        assert guest.wire.up
        router.send_multipart([b"c", msgspec.msgpack.encode((11, first, 2, [Cancel(1)]))])
        await wait_until_async(lambda: guest.events == ["up", "down"] or guest.wire.malformed > 1)
        router.send_multipart([b"c", msgspec.msgpack.encode((11, first, 2, [answer(1)]))])
        await wait_until_async(lambda: "down" in guest.events)
        second = await greeted(12, first)
        router.send_multipart([b"c", msgspec.msgpack.encode((12, second, 1, [answer(9)]))])
        await wait_until_async(lambda: guest.ids() == [9])

    on_loop(main)


# ------------------------------------------------------------------ closing


MOMENTS = ("up", "messages", "down")


def ignore(*_: Any) -> None:
    pass


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_server_may_be_closed_inside_its_callbacks(address: str, moment: str) -> None:
    async def main() -> None:
        closed: list[str] = []

        def close(*_: Any) -> None:
            closed.append(moment)
            server.send("c", answer(1))
            server.close()
            server.close()

        server = opened(
            wire.Server(
                address,
                ToAdapter,
                close if moment == "messages" else ignore,
                on_up=close if moment == "up" else ignore,
                on_down=close if moment == "down" else ignore,
            )
        )
        raw = Raw(address, "c")
        raw.say((7, 0, 0, []))
        if moment != "up":
            raw.peer = (await raw.hear())[0]
            raw.send(Cancel(1))
            raw.say((8, 0, 0, []))  # its next life
        await wait_until_async(lambda: closed)
        assert closed == [moment]

    on_loop(main)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_may_be_closed_inside_its_callbacks(address: str, moment: str) -> None:
    async def main() -> None:
        closed: list[str] = []

        def close(*_: Any) -> None:
            closed.append(moment)
            client.send(Cancel(1))
            client.close()
            client.close()

        door = Door(address)
        client = opened(
            wire.Client(
                address,
                "c",
                FromAdapter,
                close if moment == "messages" else ignore,
                on_up=close if moment == "up" else ignore,
                on_down=close if moment == "down" else ignore,
            )
        )
        if moment != "up":
            await wait_until_async(lambda: client.up)
            door.wire.send("c", answer(1))
        if moment == "down":
            door.wire.close()
            Door(address)
        await wait_until_async(lambda: closed)
        assert closed == [moment]

    on_loop(main)


def test_closing_with_traffic_in_flight_does_not_abort_the_process(address: str) -> None:
    """uvloop aborts the process when a socket is closed under its reader, and libzmq does when
    its peer closes amid a message of several frames.
    """
    script = """
        import asyncio, sys, uvloop
        from backend_adapter.messages import Answer, Cancel, FromAdapter, ToAdapter
        from supervisor import wire

        async def main():
            for turn in range(30):
                got = []

                def serve(name, messages):
                    got.append(messages)
                    for message in messages:
                        server.send(name, Answer(message.id, 200, b"", 0.0, b"x" * 300_000))
                    if turn % 3 == 0 and len(got) > 5:
                        server.close()

                def hear(messages):
                    if turn % 3 == 1:
                        client.close()

                server = wire.Server(sys.argv[1], ToAdapter, serve)
                client = wire.Client(sys.argv[1], "c", FromAdapter, hear)
                while len(got) < 10 and not server._closed and not client._closed:
                    client.send(Cancel(1))
                    await asyncio.sleep(0)
                client.close()
                server.close()
                await asyncio.sleep(0)
            print("survived")

        uvloop.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), address],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


# ------------------------------------------------------------------ lives that end


def test_a_restarted_client_takes_its_name_over(address: str) -> None:
    async def main() -> None:
        door, old = Door(address), Raw(address, "c")
        await old.greet()
        old.send(Cancel(1))
        await wait_until_async(lambda: door.ids() == [1])
        guest = Guest(address, "c")  # while the old one's connection still stands
        await guest.is_up()
        guest.wire.send(Cancel(2))
        door.wire.send("c", answer(3))
        await wait_until_async(lambda: door.ids() == [1, 2] and guest.ids() == [3])
        assert door.events == [("up", "c"), ("down", "c"), ("up", "c")]
        assert door.wire.peers == ["c"]

    on_loop(main)


def test_a_killed_client_and_its_successor(address: str) -> None:
    script = """
        import asyncio, sys, uvloop
        from backend_adapter.messages import Cancel, FromAdapter
        from supervisor import wire

        async def main():
            client = wire.Client(sys.argv[1], "c", FromAdapter, print)
            number = 0
            while True:
                number += client.send(Cancel(number))
                await asyncio.sleep(0)

        uvloop.run(main())
    """

    async def main() -> None:
        door = Door(address)
        with running(script, address):
            await wait_until_async(lambda: len(door.ids()) > 1000)
        guest = Guest(address, "c")
        await guest.is_up()
        guest.wire.send(Cancel(-1))
        await wait_until_async(lambda: door.ids()[-1] == -1)
        assert door.ids()[:-1] == list(range(len(door.ids()) - 1))
        assert door.events == [("up", "c"), ("down", "c"), ("up", "c")]

    on_loop(main)


def test_a_restarted_server_hears_nothing_of_the_old_session(address: str) -> None:
    async def main() -> None:
        first, guest = Door(address), Guest(address, "c")
        await guest.is_up()
        guest.wire.send(Cancel(1))
        await wait_until_async(lambda: first.ids() == [1])
        old = (guest.wire._end.link.epoch, guest.wire._end.link.peer)
        first.wire.close()
        for number in range(50):
            guest.wire.send(Cancel(100 + number))  # meant for the one that is gone
            await asyncio.sleep(0)
        second = Door(address)
        await wait_until_async(lambda: guest.events == ["up", "down", "up"])
        new = (guest.wire._end.link.epoch, guest.wire._end.link.peer)
        assert not set(old) & set(new)
        guest.wire.send(Cancel(2))
        await wait_until_async(lambda: second.batches)
        assert second.ids() == [2]
        assert second.events == [("up", "c")]

    on_loop(main)


def test_a_client_waits_for_its_server(address: str) -> None:
    async def main() -> None:
        guest = Guest(address, "c")
        assert not guest.wire.up
        assert not guest.wire.send(Cancel(1))
        await asyncio.sleep(0.2)  # some greetings go nowhere
        door = Door(address)
        await guest.is_up()
        assert door.events == [("up", "c")]
        assert not door.wire.send("nobody", answer(1))

    on_loop(main)


def test_a_mute_client_loses_its_session(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DEAD_AFTER_S", 0.3)

    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        await raw.greet()
        await wait_until_async(lambda: door.events == [("up", "raw"), ("down", "raw")])
        raw.send(Cancel(1))
        assert (await raw.hear())[:3] == [0, raw.epoch, 0]
        assert door.batches == []

    on_loop(main)


def test_a_mute_server_loses_its_session(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DEAD_AFTER_S", 0.3)

    async def main() -> None:
        router = opened(zmq.Context.instance().socket(zmq.ROUTER))
        router.setsockopt(zmq.LINGER, 0)
        router.bind(address)
        guest = Guest(address, "c")
        await wait_until_async(lambda: router.poll(0))
        name, frame = router.recv_multipart()
        epoch = msgspec.msgpack.decode(frame)[0]
        router.send_multipart([name, msgspec.msgpack.encode((11, epoch, 0, []))])
        await wait_until_async(lambda: guest.events == ["up", "down"])

    on_loop(main)


def test_a_greeting_that_is_repeated_is_one_session(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        await raw.greet()
        peer = raw.peer
        await raw.greet()
        assert raw.peer == peer
        assert door.events == [("up", "raw")]

    on_loop(main)


def test_sending_to_a_client_that_vanished_ends_its_session(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        await raw.greet()
        raw.close()

        def told() -> bool:
            door.wire.send("raw", answer(1))
            return door.events == [("up", "raw"), ("down", "raw")]

        await wait_until_async(told)
        assert door.wire.peers == []
        assert not door.wire.send("raw", answer(2))

    on_loop(main)


def test_what_is_said_at_once_to_a_newcomer_comes_behind_the_welcome(address: str) -> None:
    count = 3 * wire.EAGER_MESSAGES + 1

    async def main() -> None:
        def greet(name: str) -> None:
            for number in range(count):
                server.send(name, answer(number))

        server = opened(wire.Server(address, ToAdapter, lambda *_: None, on_up=greet))
        guest = Guest(address, "c")
        await wait_until_async(lambda: len(guest.ids()) >= count)
        assert (guest.ids(), guest.events) == (list(range(count)), ["up"])

    on_loop(main)


def test_nobody_hears_of_an_end_while_he_sends(address: str) -> None:
    async def main() -> None:
        door, raw = Door(address), Raw(address, "raw")
        await raw.greet()
        raw.close()

        def told() -> bool:
            before = list(door.events)
            for _ in range(3 * wire.EAGER_MESSAGES):
                door.wire.send("raw", answer(1))
            assert door.events == before
            return len(before) == 2

        await wait_until_async(told)
        assert door.events == [("up", "raw"), ("down", "raw")]

    on_loop(main)


# ------------------------------------------------------------------ full pipes


def test_a_client_that_does_not_read_blocks_nobody(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "DEAD_AFTER_S", 60.0)
    count = 5000

    async def main() -> None:
        door, raw, guest = Door(address), Raw(address, "raw"), Guest(address, "c")
        await raw.greet()
        await guest.is_up()
        for number in range(count):
            door.wire.send("raw", Credit(number, 0))  # any message: a raw client takes it as it is
            await asyncio.sleep(0)
        assert door.wire.backlog > 1000
        door.wire.send("c", answer(1))
        await wait_until_async(lambda: guest.ids() == [1], what="the other client's answer")
        got: list[int] = []
        seqs: list[int] = []
        while len(got) < count:
            _, _, seq, messages = await raw.hear()
            seqs.append(seq)
            got += [message[1] for message in messages]
        assert got == list(range(count))
        assert seqs == list(range(1, len(seqs) + 1))
        assert door.events.count(("down", "raw")) == 0
        await wait_until_async(lambda: door.wire.backlog == 0)

    on_loop(main)


def test_a_server_that_does_not_read_blocks_nobody(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "DEAD_AFTER_S", 60.0)
    count = 5000

    async def main() -> None:
        router = opened(zmq.Context.instance().socket(zmq.ROUTER))
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVHWM, 1)
        router.bind(address)
        guest = Guest(address, "c")
        await wait_until_async(lambda: router.poll(0))
        name, frame = router.recv_multipart()
        epoch = msgspec.msgpack.decode(frame)[0]
        router.send_multipart([name, msgspec.msgpack.encode((11, epoch, 0, []))])
        await guest.is_up()
        for number in range(count):
            guest.wire.send(Cancel(number))
            await asyncio.sleep(0)
        assert guest.wire.backlog > 1000
        got: list[int] = []
        while len(got) < count:
            await wait_until_async(lambda: router.poll(0))
            _, to, _, messages = msgspec.msgpack.decode(router.recv_multipart()[1])
            got += [message[1] for message in messages] if to else []
        assert got == list(range(count))
        assert guest.events == ["up"]

    on_loop(main)


# ------------------------------------------------------------------ the socket file


def test_a_deleted_socket_file_is_bound_again(address: str) -> None:
    async def main() -> None:
        door, old = Door(address), Guest(address, "old")
        await old.is_up()
        os.unlink(address.removeprefix("ipc://"))
        said = 0

        def back() -> bool:
            nonlocal said
            said += door.wire.send("old", answer(said))
            return door.wire.rebound == 1

        await wait_until_async(back, 10, "the file to be back")
        for _ in range(100):
            assert back()
            await asyncio.sleep(0)
        await wait_until_async(lambda: len(old.ids()) == said)
        assert old.ids() == list(range(said))
        new = Guest(address, "new")
        await new.is_up()
        new.wire.send(Cancel(1))
        old.wire.send(Cancel(2))
        await wait_until_async(lambda: sorted(door.ids()) == [1, 2])
        assert old.events == ["up"]  # what stood, stands

    on_loop(main)


def test_a_file_that_is_deleted_again_and_again(address: str) -> None:
    path = Path(address.removeprefix("ipc://"))

    async def main() -> None:
        door, old = Door(address), Guest(address, "old")
        await old.is_up()
        for _ in range(2 * wire.MAX_LISTENERS + 1):
            path.unlink(missing_ok=True)
            door.wire._rebind()
            assert door.wire._listeners <= wire.MAX_LISTENERS
        new = Guest(address, "new")
        await new.is_up()
        await wait_until_async(lambda: old.wire.up and "old" in door.wire.peers)

    on_loop(main)


def test_a_deleted_directory_is_no_error(address: str) -> None:
    directory = Path(address.removeprefix("ipc://")).parent

    async def main() -> None:
        door = Door(address)
        shutil.rmtree(directory)
        door.wire._rebind()
        assert door.wire.rebound == 0
        directory.mkdir()
        await wait_until_async(lambda: door.wire.rebound == 1)

    on_loop(main)


def test_an_address_must_fit_into_a_socket_address(tmp_path: Path) -> None:
    assert wire.ipc_address("/tmp", "s") == "ipc:///tmp/s"
    longest = wire.ipc_address("/tmp", "s" * 102)
    assert len(longest) == len("ipc://") + 107
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        wire.ipc_address("/tmp", "s" * 103)
    with pytest.raises(ValueError, match="TMPDIR"):
        wire.ipc_address("/tmp", "ä" * 52)


def test_an_address_that_cannot_be_bound_leaves_nothing_open(address: str) -> None:
    async def main() -> None:
        with pytest.raises(zmq.ZMQError):
            Door(address + "/nowhere/s")

    on_loop(main)


def test_epochs_differ_and_are_never_0() -> None:
    drawn = {wire.draw_epoch() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(0 < epoch < 2**63 for epoch in drawn)
