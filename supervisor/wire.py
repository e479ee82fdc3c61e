"""The only room that knows ZeroMQ: a binding ``Server`` and a connecting ``Client``.

Both speak in batches: what is produced for a peer within one tick of the loop leaves as one message
of one frame, or as several where it is much, so that the peer has something to do meanwhile.
``batch.py`` makes it, ``link.py`` holds the rules of a session and
``ends.py`` acts on them; here are the rules of the socket, each measured and each a regression test
in ``tests/unit/test_wire.py``:

- The socket's fd is edge-triggered: read until EVENTS says that nothing lies there, and look at it
  again after every send, or a message that has arrived waits for the next one.
- A drain is bounded per wake-up, so that a flooding peer cannot starve the heartbeat.
- ``remove_reader`` before a close, LINGER 0, ROUTER_MANDATORY, ROUTER_HANDOVER, MAXMSGSIZE.
- A full pipe is never waited for: batches wait in a queue of ours, bounded by what its users may
  have under way (credit, queue bounds).
- A file that vanished under a bound socket is bound again.
- What does not decode is dropped and counted; the session notices the gap.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from supervisor.batch import ALONE_BYTES, Malformed, unpacker
from supervisor.ends import ClientEnd, Frame, Peer, ServerEnd
from supervisor.messages import Message

#: Frames below this are cheaper to copy than to lend: a lent one is given back by another thread.
COPY_BYTES = 2**20
#: Messages that are not kept until the end of the tick. In a tick that takes long the peer would
#: stand still: measured at 128 connections, 32 to 48 are worth a fifth more requests a second.
EAGER_MESSAGES = 32
#: Messages that are received in one go before the loop gets its turn.
DRAIN_LIMIT = 200
#: Batches that may lie in a pipe; beyond, they wait in our own queue.
HIGH_WATER_MARK = 1_000
#: One frame may be this long unless the user of a socket says otherwise.
MAX_MESSAGE_BYTES = 64 * 2**20
#: Listeners of one address, of which the newest has the file; then all begin anew.
MAX_LISTENERS = 16
#: A timer that is later than this tells that the process, or the machine, stood still.
SLEPT_S = 1.0
CLIENT_TICK_S = 0.05
SERVER_TICK_S = 0.5
#: As plain numbers: an enum's operators take longer than the calls that they are for.
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_CONTEXT = zmq.Context()  #: ours alone: what a worker.py does with the shared one is its matter


def draw_epoch() -> int:
    """A random 63-bit number that is not 0."""
    return secrets.randbits(63) | 1


def ipc_address(directory: str, name: str) -> str:
    """Address of a socket file. ValueError: it is longer than a socket address may be."""
    if len(os.fsencode(path := os.path.join(directory, name))) > 107:
        raise ValueError(f"the path {path!r} is longer than 107 bytes: choose a shorter TMPDIR")
    return f"ipc://{path}"


class _Endpoint:
    """What both ends share: the socket, the drain loop, one flush per tick, counters."""

    _ticker: asyncio.TimerHandle
    # what each end does in its own way
    _arrived: Callable[[list[Frame], float], None]
    _flush_end: Callable[[], None]
    _unblock: Callable[[], None]
    _tick: Callable[[], None]

    def __init__(self, kind: int, max_message_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        socket: zmq.Socket[bytes] = _CONTEXT.socket(kind)
        self._socket = socket
        # looked up once, and neither is one of pyzmq's multipart calls: those take twice as long
        self._get, self._receive, self._send = socket.getsockopt, socket.recv, socket.send
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.copy_threshold = COPY_BYTES
        socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._closed = False
        self._flushing = False
        self._unflushed = 0
        self._draining = False
        self._ticked_at = time.monotonic()
        #: batches dropped because they did not decode
        self.malformed = 0

    def _open(self, attach: Callable[[str], object], address: str) -> None:
        try:
            attach(address)
        except BaseException:
            self._socket.close()
            raise
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._tick()

    def close(self) -> None:
        """Leave the loop, then close the socket. Unsent batches are dropped."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._ticker.cancel()
        self._socket.close()

    def _slept(self, period_s: float) -> bool:
        """This tick comes so late that the peers may have spoken, and nobody listened."""
        before, self._ticked_at = self._ticked_at, time.monotonic()
        return self._ticked_at - before > period_s + SLEPT_S

    def _drain(self) -> None:
        """Receive all that lies there, up to the bound; then let the loop breathe."""
        self._draining = False
        for _ in range(DRAIN_LIMIT):
            if self._closed:
                return
            if not self._has_messages():
                break
            try:
                parts = [self._receive(_NOBLOCK, copy=False)]
                while parts[-1].more:
                    parts.append(self._receive(_NOBLOCK, copy=False))
            except zmq.Again:
                break  # it has gone with its connection
            try:
                # a long one is not copied: what is a view of it keeps it
                frames = [p.buffer if len(p) > ALONE_BYTES else p.bytes for p in parts]
                self._arrived(frames, time.monotonic())
            except Malformed:
                self.malformed += 1
            except BaseException:
                self._drain_soon()  # the fd will not wake us for what already lies here
                raise
        else:
            self._drain_soon()
        self._unblock()

    def _has_messages(self) -> bool:
        return bool(int(self._get(_EVENTS)) & _POLLIN)

    def _drain_soon(self) -> None:
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain)

    def _flush_soon(self) -> None:
        if self._unflushed >= EAGER_MESSAGES:
            self._unflushed = 0
            self._flush_end()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._unflushed = 0
        self._flush_end()

    def _put(self, *frames: bytes) -> bool:
        """Send one message. False: the pipe is full."""
        if self._closed:
            return True  # a callback closed us: what is left to send is dropped
        try:
            for frame in frames[:-1]:
                self._send(frame, _NOBLOCK | _SNDMORE)
            self._send(frames[-1], _NOBLOCK, copy=False)
        except zmq.Again:
            return False
        finally:
            if self._has_messages():
                self._drain_soon()
        return True


class Client(_Endpoint):
    """The connecting end of a socket (DEALER).

    Args:
        address: ``ipc://…`` of the server.
        identity: name that the server knows this process by; unique among its clients.
        receives: union of the message types that may arrive.
        on_messages: called with each batch, in order.
        on_up, on_down: a session began, or ended. What it did not settle must be sent again.
        max_message_bytes: a longer frame ends the connection. At least a body and 1 MiB.
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
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        super().__init__(zmq.DEALER, max_message_bytes)
        self._address = address
        self._end = ClientEnd(
            draw_epoch, unpacker(receives), self._put, self._reconnect,
            on_messages, on_up, on_down,
        )  # fmt: skip
        self._flush_end = self._end.flush
        self._unblock = self._end.out.unblock
        self._arrived = self._end.arrived
        self._socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
        self._open(self._socket.connect, address)

    @property
    def up(self) -> bool:
        """A session stands."""
        return self._end.link.up

    @property
    def backlog(self) -> int:
        """Batches that wait for room in the pipe."""
        return len(self._end.out.waiting)

    def send(self, message: Message) -> bool:
        """Send within this tick. False, and nothing is kept: no session stands."""
        if not self._end.send(message):
            return False
        self._unflushed += 1
        if not self._flushing or self._unflushed >= EAGER_MESSAGES:
            self._flush_soon()
        return True

    def _reconnect(self) -> None:
        """ZeroMQ never does it after a frame that was too long, or other bytes than its own."""
        with suppress(zmq.ZMQError):
            self._socket.disconnect(self._address)
        self._socket.connect(self._address)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(CLIENT_TICK_S, self._tick)
        if self._slept(CLIENT_TICK_S):
            self._end.link.slept(self._ticked_at)
        self._unblock()
        self._end.tick(time.monotonic())


class Server(_Endpoint):
    """The binding end of a socket (ROUTER).

    Args:
        address: ``ipc://…`` to bind.
        receives: union of the message types that may arrive.
        on_messages, on_up, on_down: as for a ``Client``, with the client's name first.
        max_message_bytes: a longer frame ends its connection. At least a body and 1 MiB.
    """

    def __init__(
        self,
        address: str,
        receives: Any,
        on_messages: Callable[[str, list[Any]], None],
        *,
        on_up: Callable[[str], None] | None = None,
        on_down: Callable[[str], None] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        super().__init__(zmq.ROUTER, max_message_bytes)
        self._address = address
        self._end = ServerEnd(
            draw_epoch, unpacker(receives), self._put_to, on_messages, on_up, on_down
        )
        self._flush_end = self._end.flush
        self._arrived = self._end.arrived
        self._listeners = 1
        #: times that a vanished socket file was bound again
        self.rebound = 0
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._open(self._socket.bind, address)

    @property
    def peers(self) -> list[str]:
        """Names of the clients whose sessions stand."""
        return list(self._end.peers)

    @property
    def backlog(self) -> int:
        """Batches that wait for room in some client's pipe."""
        return sum(len(peer.out.waiting) for peer in self._end.peers.values())

    def send(self, name: str, message: Message) -> bool:
        """Send to a client within this tick. False, and nothing is kept: no session stands."""
        if not self._end.send(name, message):
            return False
        self._unflushed += 1
        if not self._flushing or self._unflushed >= EAGER_MESSAGES:
            self._flush_soon()
        return True

    def close(self) -> None:
        """As a client's; no session begins any more."""
        self._end.closed = True
        super().close()

    def _put_to(self, name: str, frame: bytes) -> bool:
        """False: the client's pipe is full. A client that is not there loses its session, but not
        before whoever sends now is done: it hears of it then.
        """
        try:
            return self._put(name.encode(), frame)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._loop.call_soon(self._gone, name, self._end.peers.get(name))
            return True

    def _gone(self, name: str, peer: Peer | None) -> None:
        """It was not there; another session of its may stand by now."""
        if peer is not None and peer is self._end.peers.get(name) and not self._closed:
            self._end.drop(name)

    def _unblock(self) -> None:
        for peer in list(self._end.peers.values()):
            peer.out.unblock()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(SERVER_TICK_S, self._tick)
        if self._slept(SERVER_TICK_S):
            self._end.slept(self._ticked_at)
        self._unblock()
        self._end.tick(time.monotonic())
        if not self._closed and not os.path.exists(self._address.removeprefix("ipc://")):
            self._rebind()

    def _rebind(self) -> None:
        """The file is gone, so nobody new can connect: make it again.

        The old listener is kept, since unbinding it would cut the connections that it accepted.
        """
        try:
            if self._listeners == MAX_LISTENERS:
                self._socket.unbind(self._address)
                self._listeners = 0
            self._socket.bind(self._address)
        except zmq.ZMQError:
            return  # the directory is gone too; tried again at the next tick
        self._listeners += 1
        self.rebound += 1
