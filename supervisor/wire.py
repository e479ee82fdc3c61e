"""The only room that knows ZeroMQ: a binding ``Server`` and a connecting ``Client``.

Both speak in batches: everything that is produced for a peer within one tick of the loop leaves as
one message, ``[epoch, peer_epoch, seq, [message, …]]`` in MessagePack, followed by one frame for
each body over 64 KiB. ``link.py`` holds the rules of a session; here are the rules of the socket,
each measured and each a regression test in ``tests/unit/test_wire.py``:

- The socket's fd is edge-triggered: read until EAGAIN, and look at EVENTS again after every send,
  or a message that has arrived waits for the next one.
- A drain is bounded per wake-up, so that a flooding peer cannot starve the heartbeat.
- ``remove_reader`` before the socket closes, LINGER 0, ROUTER_MANDATORY and ROUTER_HANDOVER on,
  MAXMSGSIZE set.
- A full pipe is never waited for: batches stay in a queue of ours and go when there is room. What
  may lie there is bounded by the users' credit and queue bounds; ``backlog`` shows it.
- A file that vanished under a bound socket is bound again.

What does not decode is dropped, counted, and never more than a warning.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq

from supervisor.link import ClientLink, Header, ServerLink
from supervisor.messages import Message

#: Bodies above this many bytes travel as frames of their own, uncopied.
LARGE_BODY_BYTES = 65_536
#: Messages that are received in one go before the loop gets its turn.
DRAIN_LIMIT = 200
#: Batches that may lie in a pipe; beyond, they wait in our own queue.
HIGH_WATER_MARK = 1_000
#: Messages in one batch; more go in several.
BATCH_LIMIT = 2_000
TICK_S = 0.05

_encode = msgspec.msgpack.Encoder().encode
Parts = Sequence[bytes | memoryview]


def draw_epoch() -> int:
    """A random 63-bit number that is not 0."""
    return secrets.randbits(63) | 1


def ipc_address(directory: str, name: str) -> str:
    """Address of a socket file.

    Raises:
        ValueError: the path is longer than a socket address may be (107 bytes).
    """
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) > 107:
        raise ValueError(
            f"the socket path {path!r} is longer than 107 bytes: choose a shorter TMPDIR"
        )
    return f"ipc://{path}"


def _pack(header: Header, messages: Sequence[Message]) -> list[bytes | memoryview]:
    """One batch as frames: the list first, then each large body."""
    bodies: list[bytes | memoryview] = []
    for index, message in enumerate(messages):
        if message.bulky and len(message.body) > LARGE_BODY_BYTES:  # type: ignore[attr-defined]
            if not bodies:
                messages = list(messages)
            bodies.append(message.body)  # type: ignore[attr-defined]
            changed = msgspec.structs.replace(message, body=b"", frame=len(bodies))
            messages[index] = changed  # type: ignore[index]
    return [_encode((*header, messages)), *bodies]


class _Endpoint:
    """What both ends share: the socket, the drain loop, one flush per tick, counters."""

    def __init__(
        self, kind: int, receives: Any, max_message_bytes: int, identity: bytes | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._decode = msgspec.msgpack.Decoder(tuple[int, int, int, list[receives]]).decode
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self._socket = socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        if identity is not None:
            socket.setsockopt(zmq.IDENTITY, identity)
        self._closed = False
        self._flushing = False
        self._draining = False
        self._ticker: asyncio.TimerHandle | None = None
        #: batches dropped because they did not decode
        self.malformed = 0

    def _go(self) -> None:
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._tick()

    def close(self) -> None:
        """Leave the loop, then close the socket. Unsent batches are dropped."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._ticker is not None:
            self._ticker.cancel()
        self._socket.close()

    def _drain(self) -> None:
        """Receive until EAGAIN or the bound, then let the loop breathe."""
        self._draining = False
        for _ in range(DRAIN_LIMIT):
            if self._closed:
                return
            try:
                parts = self._receive()
            except zmq.Again:
                break
            try:
                self._arrived(parts)
            except BaseException:
                self._drain_soon()  # the fd will not wake us for what already lies here
                raise
        else:
            self._drain_soon()
        if not self._closed:
            self._unblock()

    def _receive(self) -> list[Any]:
        socket = self._socket
        parts: list[Any] = [socket.recv(zmq.NOBLOCK)]
        while socket.getsockopt(zmq.RCVMORE):
            # the first two frames are small or about to be decoded; the rest are large bodies
            parts.append(socket.recv(zmq.NOBLOCK) if len(parts) < 2 else self._view())
        return parts

    def _view(self) -> memoryview:
        frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        return memoryview(frame.buffer)

    def _drain_soon(self) -> None:
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _put(self, parts: Parts) -> bool:
        """Send one multipart message. False: the pipe is full."""
        try:
            # copy=False copies all the same what is smaller than the socket's copy_threshold
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        finally:
            if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self._drain_soon()
        return True

    def _unpack(self, parts: list[Any]) -> tuple[Header, list[Any]] | None:
        try:
            epoch, to, seq, messages = self._decode(parts[0])
            if len(parts) > 1:
                for message in messages:
                    if message.bulky and message.frame:
                        body = parts[message.frame]
                        msgspec.structs.force_setattr(message, "body", body)
        except (msgspec.DecodeError, IndexError, RecursionError):
            self.malformed += 1
            return None
        return (epoch, to, seq), messages

    def _arrived(self, parts: list[Any]) -> None:
        raise NotImplementedError

    def _flush(self) -> None:
        raise NotImplementedError

    def _unblock(self) -> None:
        raise NotImplementedError

    def _tick(self) -> None:
        raise NotImplementedError


class Client(_Endpoint):
    """The connecting end of a socket (DEALER).

    Args:
        address: ``ipc://…`` of the server.
        identity: name that the server knows this process by; unique among its clients.
        receives: union of the message types that may arrive.
        on_messages: called with each batch, in order.
        on_up, on_down: a session began, or ended. What it did not settle must be sent again.
        max_message_bytes: larger messages end the connection.
    """

    def __init__(
        self,
        address: str,
        identity: str,
        receives: Any,
        on_messages: Callable[[list[Any]], None],
        *,
        on_up: Callable[[], None] | None = None,
        on_down: Callable[[], None] | None = None,
        max_message_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__(zmq.DEALER, receives, max_message_bytes, identity.encode())
        self._on_messages = on_messages
        self._on_up = on_up
        self._on_down = on_down
        self._link = ClientLink(draw_epoch)
        self._out: list[Message] = []
        self._blocked: deque[Parts] = deque()
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
        self._socket.connect(address)
        self._go()

    @property
    def up(self) -> bool:
        """A session stands."""
        return self._link.up

    @property
    def backlog(self) -> int:
        """Batches that wait for room in the pipe."""
        return len(self._blocked)

    def send(self, message: Message) -> bool:
        """Send within this tick. False, and nothing is kept: no session stands."""
        if not self._link.up:
            return False
        self._out.append(message)
        if not self._flushing:
            self._flush_soon()
        return True

    def _flush(self) -> None:
        self._flushing = False
        if self._closed or not self._out:
            return
        messages, self._out = self._out, []
        now = time.monotonic()
        for start in range(0, len(messages), BATCH_LIMIT):
            part = (
                messages[start : start + BATCH_LIMIT]
                if start or messages[BATCH_LIMIT:]
                else messages
            )
            self._offer(_pack(self._link.wrap(now), part))

    def _offer(self, parts: Parts) -> None:
        if self._blocked or not self._put(parts):
            self._blocked.append(parts)

    def _unblock(self) -> None:
        while self._blocked and self._put(self._blocked[0]):
            self._blocked.popleft()

    def _arrived(self, parts: list[Any]) -> None:
        unpacked = self._unpack(parts)
        if unpacked is None:
            return
        header, messages = unpacked
        verdict = self._link.receive(header, time.monotonic())
        if verdict == "deliver":
            if messages:
                self._on_messages(messages)
        elif verdict == "up":
            if self._on_up is not None:
                self._on_up()
        elif verdict == "reset":
            self._down()

    def _down(self) -> None:
        self._out.clear()
        self._blocked.clear()
        if self._on_down is not None:
            self._on_down()
        self._greet()

    def _greet(self) -> None:
        if not self._closed and self._link.tick(time.monotonic()) == "greet":
            self._put([_encode((self._link.epoch, 0, 0, []))])

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._unblock()
        now = time.monotonic()
        due = self._link.tick(now)
        if due == "greet":
            self._put([_encode((self._link.epoch, 0, 0, []))])
        elif due == "keepalive":
            self._offer(_pack(self._link.wrap(now), ()))
        elif due == "reset":
            self._down()


class _Peer:
    """The server's end of one session."""

    __slots__ = ("blocked", "link", "out")

    def __init__(self, link: ServerLink) -> None:
        self.link = link
        self.out: list[Message] = []
        self.blocked: deque[Parts] = deque()


class Server(_Endpoint):
    """The binding end of a socket (ROUTER).

    Args:
        address: ``ipc://…`` to bind.
        receives: union of the message types that may arrive.
        on_messages: called with the client's name and each batch, in order.
        on_up, on_down: called with the client's name when its session began, or ended.
        max_message_bytes: larger messages end the connection they came over.
    """

    def __init__(
        self,
        address: str,
        receives: Any,
        on_messages: Callable[[str, list[Any]], None],
        *,
        on_up: Callable[[str], None] | None = None,
        on_down: Callable[[str], None] | None = None,
        max_message_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__(zmq.ROUTER, receives, max_message_bytes, None)
        self._address = address
        self._on_messages = on_messages
        self._on_up = on_up
        self._on_down = on_down
        #: drawn once: it names this process's life
        self.epoch = draw_epoch()
        self._peers: dict[str, _Peer] = {}
        self._dirty: dict[str, _Peer] = {}
        #: times that a vanished socket file was bound again
        self.rebound = 0
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.bind(address)
        self._go()

    @property
    def peers(self) -> list[str]:
        """Names of the clients whose sessions stand."""
        return list(self._peers)

    @property
    def backlog(self) -> int:
        """Batches that wait for room in some client's pipe."""
        return sum(len(peer.blocked) for peer in self._peers.values())

    def send(self, name: str, message: Message) -> bool:
        """Send to a client within this tick. False, and nothing is kept: no session stands."""
        peer = self._peers.get(name)
        if peer is None:
            return False
        peer.out.append(message)
        self._dirty[name] = peer
        if not self._flushing:
            self._flush_soon()
        return True

    def _flush(self) -> None:
        self._flushing = False
        if self._closed:
            return
        dirty, self._dirty = self._dirty, {}
        for name, peer in dirty.items():
            messages, peer.out = peer.out, []
            for start in range(0, len(messages), BATCH_LIMIT):
                part = (
                    messages[start : start + BATCH_LIMIT]
                    if start or messages[BATCH_LIMIT:]
                    else messages
                )
                self._offer(name, peer, [name.encode(), *_pack(peer.link.wrap(), part)])

    def _offer(self, name: str, peer: _Peer, parts: Parts) -> None:
        if peer.blocked or not self._put_to(name, parts):
            peer.blocked.append(parts)

    def _put_to(self, name: str, parts: Parts) -> bool:
        """False: the client's pipe is full. A client that is not there loses its session."""
        try:
            return self._put(parts)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(name)
            return True

    def _unblock(self) -> None:
        for name, peer in list(self._peers.items()):
            while peer.blocked and self._put_to(name, peer.blocked[0]):
                if peer.blocked:
                    peer.blocked.popleft()

    def _drop(self, name: str) -> None:
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        peer.out.clear()
        peer.blocked.clear()
        if self._on_down is not None:
            self._on_down(name)

    def _arrived(self, parts: list[Any]) -> None:
        if len(parts) < 2:
            self.malformed += 1
            return
        try:
            name = parts[0].decode()
        except UnicodeDecodeError:
            self.malformed += 1
            return
        unpacked = self._unpack(parts[1:])
        if unpacked is None:
            return
        header, messages = unpacked
        now = time.monotonic()
        peer = self._peers.get(name)
        epoch, to, _ = header
        if to == 0:
            if peer is None or peer.link.peer != epoch:
                self._drop(name)
                self._peers[name] = _Peer(ServerLink(self.epoch, epoch, now))
                self._put_to(name, [parts[0], _encode((self.epoch, epoch, 0, []))])
                if self._on_up is not None and name in self._peers:
                    self._on_up(name)
            else:
                self._put_to(name, [parts[0], _encode((self.epoch, epoch, 0, []))])
        elif peer is not None and peer.link.receive(header, now):
            if messages:
                self._on_messages(name, messages)
            else:
                self._offer(name, peer, [parts[0], *_pack(peer.link.wrap(), ())])
        else:
            if peer is not None and peer.link.peer == epoch:
                self._drop(name)
            self._put_to(name, [parts[0], _encode((0, epoch, 0, []))])

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S * 10, self._tick)
        self._unblock()
        now = time.monotonic()
        for name, peer in list(self._peers.items()):
            if peer.link.dead(now):
                self._drop(name)
        if not os.path.exists(self._address.removeprefix("ipc://")):
            self._rebind()

    def _rebind(self) -> None:
        """The file is gone, so nobody new can connect: make it again. Old connections live on."""
        try:
            self._socket.unbind(self._address)
        except zmq.ZMQError:
            pass  # the listener is already gone with its file
        try:
            self._socket.bind(self._address)
        except zmq.ZMQError:
            return  # the directory is gone too; tried again at the next tick
        self.rebound += 1
