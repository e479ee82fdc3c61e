"""What stands around the two ends of the jobs socket, simulated: a model server behind real
connections (``model_connection.py`` parses every byte), and clients in front of real exchanges.

Nothing here knows a law: it does what networks, model servers and clients do, and takes notes.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any

from ingress.exchange import Exchange
from ingress.responses import Prefixes

#: Bytes that lie unsent before a client counts as slow, and below which it does not any more.
HIGH, LOW = 48, 16
SHARED: Any = SimpleNamespace(prefixes=Prefixes(0.0), draining=False)


# ------------------------------------------------------------------ the adapter's event loop


class Dial:
    """A connection that is being made: a coroutine waits for it."""

    def __await__(self) -> Generator[Dial, Exception | None, Exception | None]:
        return (yield self)


class Task:
    """What runs a coroutine that waits for a Dial."""

    def __init__(self, loop: Loop, work: Coroutine[Any, Any, None]) -> None:
        self._loop = loop
        self._work = work
        work.send(None)
        loop.dials.append(self)

    def cancel(self) -> None:
        if self in self._loop.dials:
            self._loop.dials.remove(self)
            self._work.close()

    def finish(self, error: Exception | None) -> None:
        self._loop.dials.remove(self)
        try:
            self._work.send(error)
        except StopIteration:
            return
        raise AssertionError("it waits for something else")

    def add_done_callback(self, callback: object) -> None: ...


class Loop:
    """The part of an event loop that the connections to a model server use."""

    def __init__(self, clock: Callable[[], float], model: ModelServer) -> None:
        self.time = clock
        self._model = model
        self.dials: list[Task] = []
        self.timers: list[tuple[float, Callable[..., object]]] = []
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def call_later(self, delay_s: float, callback: Callable[..., object]) -> None:
        self.timers.append((self.time() + delay_s, callback))

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._soon.append((callback, args))

    def create_task(self, work: Coroutine[Any, Any, None]) -> Task:
        return Task(self, work)

    async def create_connection(self, factory: Any, host: str, port: int) -> Any:
        error = await Dial()
        if error is not None:
            raise error
        protocol = factory()
        transport = Transport(self, self._model, protocol)
        self._model.connections.append(transport)
        protocol.connection_made(transport)
        return transport, protocol

    def run(self) -> bool:
        """Everything that is due now. False: nothing was."""
        did = False
        for timer in [timer for timer in self.timers if timer[0] <= self.time()]:
            self.timers.remove(timer)
            timer[1]()
            did = True
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)
            did = True
        return did


# ------------------------------------------------------------------ the model server


class Transport:
    """One connection, seen from both sides. ``request`` is what the model server works on."""

    def __init__(self, loop: Loop, model: ModelServer, protocol: asyncio.Protocol) -> None:
        self._loop = loop
        self._model = model
        self.protocol = protocol
        self.inbox: deque[bytes] = deque()  #: on its way to the adapter
        self.ending = ""  #: of the model server's side: fin or rst, behind what is in the inbox
        self.paused = False
        self.closing = False
        self.work: Work | None = None
        self._written = b""

    # what the protocol calls

    def write(self, data: bytes) -> None:
        self._written += data
        head, end, body = self._written.partition(b"\r\n\r\n")
        if self.ending or not end:
            return
        size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert len(body) <= size, "two requests at once"
        if len(body) == size:
            self._written = b""
            assert self.work is None, "a request before the response to the last one"
            self.work = self._model.received(body)

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self._model.forget(self)
            self._loop.call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        return None

    # what the network does

    def carry(self) -> bool:
        """The next piece arrives at the adapter. False: nothing is there, or nobody reads."""
        if self.closing or self.paused:
            return False
        if self.inbox:
            self.protocol.data_received(self.inbox.popleft())
        elif self.ending == "fin":
            self.ending = "over"
            self.protocol.eof_received()
        elif self.ending == "rst":
            self.closing = True
            self._model.forget(self)
            self.protocol.connection_lost(ConnectionResetError("reset"))
        else:
            return False
        return True


class Work:
    """A request that the model server runs, and the response that it decided on."""

    def __init__(self, number: int, run: int) -> None:
        self.number = number
        self.run = run
        self.begun = False
        self.ended = False
        self.status = 0
        self.body = b""
        self.sent = 0
        self.framing = ""

    def text(self, size: int) -> bytes:
        """A body that no other run has."""
        parts = [b"<%d.%d.%d>" % (self.number, self.run, at) for at in range(size // 6 + 1)]
        return b"".join(parts)[:size]


#: status, size of the body, framing, content type
RESPONSES = (
    (200, 24, "sized", b"application/json"),
    (200, 400, "chunked", b"text/event-stream"),
    (200, 300, "chunked", b"application/json"),
    (200, 300, "sized", b"text/event-stream"),
    (422, 20, "sized", b"application/json"),
    (500, 20, "sized", b"application/json"),
    (200, 200, "close", b"text/plain"),
    (204, 0, "bodiless", b"text/plain"),
    (503, 200, "chunked", b"text/event-stream"),
)


class ModelServer:
    """Answers as it is told. ``runs`` holds every request that it ever got, by its number."""

    def __init__(self) -> None:
        self.alive = True
        self.connections: list[Transport] = []
        self.runs: dict[int, list[Work]] = defaultdict(list)
        self.on_received: Callable[[int], None]
        self._runs = 0

    def received(self, body: bytes) -> Work:
        number = int(body.partition(b'"n":')[2].partition(b",")[0])
        self.on_received(number)
        self._runs += 1
        work = Work(number, self._runs)
        self.runs[number].append(work)
        return work

    def forget(self, connection: Transport) -> None:
        if connection in self.connections:
            self.connections.remove(connection)

    @property
    def busy(self) -> list[Transport]:
        return [each for each in self.connections if each.work is not None and not each.ending]

    def die(self, how: str) -> None:
        """Its process is gone."""
        self.alive = False
        for connection in self.connections:
            if not connection.ending:
                self.hang_up(connection, how)

    def hang_up(self, connection: Transport, how: str) -> None:
        """It closes one connection."""
        connection.ending = how
        work = connection.work
        if work is not None and work.framing == "close" and how == "fin":
            work.ended = True  # as far as anyone can tell
            work.body = work.body[: work.sent]

    def say(self, connection: Transport, data: bytes) -> None:
        connection.inbox.append(data)

    def begin(self, connection: Transport, kind: int, with_body: bool) -> None:
        """The head of a response, perhaps all of it at once."""
        work = connection.work
        assert work is not None
        work.begun = True
        work.status, size, work.framing, content_type = RESPONSES[kind]
        work.body = work.text(size)
        lines = {
            "sized": b"content-length: %d\r\n" % size,
            "chunked": b"transfer-encoding: chunked\r\n",
            "close": b"connection: close\r\n",
            "bodiless": b"",
        }[work.framing]
        head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\n%b\r\n" % (work.status, content_type, lines)
        if with_body or work.framing == "bodiless":
            piece = self._piece(work, size)
            end = self._end(connection, work)
            connection.inbox.append(head + piece + end)
        else:
            self.say(connection, head)

    def go_on(self, connection: Transport, size: int) -> None:
        """More of a response, and its end where nothing is left."""
        work = connection.work
        assert work is not None
        piece = self._piece(work, size)
        end = self._end(connection, work) if work.sent == len(work.body) else b""
        if piece + end:
            self.say(connection, piece + end)

    def finish(self, connection: Transport) -> None:
        work = connection.work
        assert work is not None
        if not work.begun:
            self.begin(connection, work.number % len(RESPONSES), with_body=True)
        else:
            self.go_on(connection, len(work.body))

    def _piece(self, work: Work, size: int) -> bytes:
        data = work.body[work.sent : work.sent + size]
        work.sent += len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if data and work.framing == "chunked" else data

    def _end(self, connection: Transport, work: Work) -> bytes:
        work.ended = True
        connection.work = None
        if work.framing == "close":
            connection.ending = "fin"
        return b"0\r\n\r\n" if work.framing == "chunked" else b""


# ------------------------------------------------------------------ the clients


class Watched(Exchange):
    """An exchange that nobody may speak to after its end."""

    __slots__ = ()

    def respond(self, status: int, headers: bytes, body: bytes | memoryview = b"") -> None:
        assert not self.ended, "a second answer"
        super().respond(status, headers, body)

    def fail(self, fault: Any) -> None:
        assert not self.ended, "an error after the end"
        super().fail(fault)

    def begin(self, status: int, headers: bytes, content_length: int = -1) -> None:
        assert not self.begun, "a second head"
        super().begin(status, headers, content_length)

    def write(self, data: bytes | memoryview) -> None:
        assert not self.ended, "bytes after the end"
        super().write(data)

    def finish(self) -> None:
        assert not self.ended, "a second end"
        super().finish()

    def abort(self) -> None:
        assert not self.ended, "cut after the end"
        super().abort()


class Client:
    """One client and its request: stands where ``connection.py`` does."""

    def __init__(self, number: int, path: bytes, body: bytes, now: float) -> None:
        self.number = number
        self.shared = SHARED
        self.workload = 0.0
        self.max_unread = 0
        self.read_bytes = 0
        self.unread = 0
        self.raw = bytearray()  #: what it was sent
        self.complete = False  #: the answer ended as a whole one does
        self.was_cut = False
        self.gone = False
        self.writable = True
        self.refused = ""
        self.exchange = exchange = Watched(self)  # type: ignore[arg-type]
        exchange.method = b"POST"
        exchange.path = path
        exchange.body = body
        exchange.content_length = len(body)
        exchange.arrived_at = now

    @property
    def unread_bytes(self) -> int:
        return self.unread

    @property
    def ended(self) -> bool:
        return self.complete or self.was_cut or bool(self.refused)

    def write(self, data: bytes | memoryview) -> None:
        assert not self.gone and not self.ended
        self.raw += data
        self.unread += len(data)
        self.max_unread = max(self.max_unread, self.unread)
        if self.unread > HIGH:
            self.writable = False

    def write_pieces(self, pieces: tuple[bytes | memoryview, ...]) -> None:
        self.write(b"".join(pieces))

    def send_whole(
        self, request: Any, status: int, headers: bytes, body: bytes, keep_alive: bool
    ) -> None:
        head = b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n" % (status, headers, len(body))
        self.write((head if status != 204 else b"HTTP/1.1 204 X\r\n" + headers + b"\r\n") + body)
        self.max_unread = 0  # what is whole and small waits for nobody

    def end_exchange(self, keep_alive: bool) -> None:
        self.complete = True

    def guard(self, on: bool) -> None: ...

    def cut(self, reset: bool) -> None:
        self.was_cut = True
