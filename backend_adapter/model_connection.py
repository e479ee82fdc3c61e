"""One connection to the model server: a request goes out, its response comes back in callbacks.

Law: a request ends by exactly one of ``on_end``, ``on_lost`` and ``on_broken``, and nothing follows
it. A response counts as complete only when its framing says so; the end of the connection completes
it only where nothing else could (RFC 9112 6.3).

The parser's callbacks only take notes. The request's own are called once the parser is done with
what was read, so that they may cancel, or send the next request on this very connection.

Not known here: which connection is used when, timers, the queue.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Protocol, cast

import httptools

from backend_adapter.file_body import Feeder
from backend_adapter.known_heads import KnownHeads
from backend_adapter.last_words import LastWords
from backend_adapter.messages import FilePart
from backend_adapter.model_request import Request
from backend_adapter.response_headers import ResponseHead, read_head

HEAD_LIMIT_BYTES = 65_536  #: response head, and framing without any body in between
_LARGE_BYTES = 65_536  #: a body above is not copied: not to its head, nor by the parser


class Owner(Protocol):
    """What a connection needs of the pool that it belongs to."""

    progress_at: float
    known_heads: KnownHeads

    def connected(self, connection: Connection, request: Request) -> None:
        """The connection stands. Starts the request, or aborts if nobody wants it any more."""

    def freed(self, connection: Connection, reusable: bool) -> None:
        """Its request has ended."""

    def closed(self, connection: Connection) -> None:
        """It is gone."""

    def resend(self, request: Request) -> None:
        """What its connection said may belong to the request before: take a new one."""


class Connection(asyncio.Protocol):
    """One connection. ``counted``: it carries jobs; a health probe is no progress and not kept."""

    __slots__ = (
        "_body_bytes",
        "_complete",
        "_excess",
        "_feeder",
        "_first",
        "_head",
        "_head_bytes",
        "_head_told",
        "_keep_alive",
        "_last_at",
        "_last_words",
        "_left",
        "_lines",
        "_loop",
        "_owner",
        "_parser",
        "_parts",
        "_paused",
        "_socket",
        "_touched",
        "_transport",
        "_unparsed_bytes",
        "counted",
        "request",
        "reused",
    )

    def __init__(
        self, owner: Owner, loop: asyncio.AbstractEventLoop, first: Request, counted: bool
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._first: Request | None = first
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None  #: where a word to TCP makes sense
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._lines: list[tuple[bytes, bytes]] = []
        self._last_at = 0.0
        self._paused = False
        self._feeder: Feeder | None = None  #: of a body that lies in a file
        self._last_words: LastWords | None = None  #: of one whose body may not be wanted
        self.counted = counted
        self.reused = False
        self.request: Request | None = None  #: None: idle, or closed
        self._clear()

    def _clear(self) -> None:
        """Forget the last response."""
        self._head: ResponseHead | None = None
        self._head_told = False
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body_bytes = 0
        self._left = 0  #: bytes of the body that are still to come, and are not parsed
        self._touched = False  #: bytes of a final response were seen
        self._complete = False
        self._keep_alive = False
        self._excess = False  #: more came than was asked for

    # ----------------------------------------------------------------- for the pool

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def start(self, request: Request) -> None:
        """Write the request. The connection is idle and usable."""
        transport = self._transport
        assert transport is not None
        self.request = request
        request.connection = self
        request.sent_at = self._loop.time()
        body = request.body
        if isinstance(body, FilePart):
            failed = partial(self._unreadable, request)
            self._feeder = Feeder(body, transport, self._loop, failed)
            self._last_words = LastWords(transport)
            transport.write(request.head)  # may be more than is taken already
            self._feeder.start()
        elif len(body) <= _LARGE_BYTES:
            transport.write(b"".join((request.head, body)))
        else:
            self._last_words = LastWords(transport)
            transport.write(request.head)
            transport.write(body)

    def _unreadable(self, request: Request, reason: str) -> None:
        if self.request is request:
            self.break_off("internal", reason)

    def pause_writing(self) -> None:
        """asyncio: the model server does not take what was sent."""
        if self._feeder is not None:
            self._feeder.pause()

    def resume_writing(self) -> None:
        """asyncio: it does again."""
        if self._feeder is not None:
            self._feeder.resume()

    def pause(self) -> None:
        """Read no more for now: the model server's socket fills up and slows it down."""
        if not self._paused and self._transport is not None and self.usable:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on. The pause does not count as silence."""
        if self._paused and self._transport is not None and self.usable:
            self._paused = False
            self._last_at = self._loop.time()
            self._transport.resume_reading()

    def overdue(self, now: float, first_byte_timeout_s: float, idle_timeout_s: float) -> str:
        """What the model server has exceeded, for people; empty: nothing. 0: no limit."""
        request = self.request
        if request is None:
            return ""
        if self._head is None:
            if 0 < first_byte_timeout_s < now - request.sent_at:
                return f"no response head within {first_byte_timeout_s:g} s"
        elif not self._paused and 0 < idle_timeout_s < now - self._last_at:
            return f"nothing more of the response for {idle_timeout_s:g} s"
        return ""

    def abandon(self) -> None:
        """Close at once; nobody hears about it."""
        self._detach()
        self.abort()

    def fail(self, reason: str) -> None:
        """Close at once; the model server is known to be gone, so nothing is sent again here."""
        self.reused = False
        self._broke_off(reason)
        self.abort()

    def break_off(self, kind: str, message: str) -> None:
        """Close at once; the request fails as ``kind``."""
        request = self._detach()
        self.abort()
        if request is not None:
            request.sink.on_broken(kind, message)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        used = transport.get_extra_info("socket")
        known = used is not None and hasattr(socket, "TCP_QUICKACK")
        if known and used.family in (socket.AF_INET, socket.AF_INET6):
            self._socket = used
        first, self._first = self._first, None
        if first is not None:
            self._owner.connected(self, first)

    def data_received(self, data: bytes) -> None:
        request = self.request
        if request is None or self._parser is None:
            self.abort()  # nobody asked: whatever it is, it must not meet the next request
            return
        self._last_at = self._loop.time()
        if self.counted:
            self._owner.progress_at = self._last_at
        if self._left:
            self._count(request, data)
            return
        fresh = self._head is None and not self._unparsed_bytes and request.method != "HEAD"
        known = self._owner.known_heads.split(data) if fresh else None
        if known is not None:
            self._release(True)
            request.sink.on_whole(*known)
            return
        problem = ""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            problem = "the model server switched protocols, which was not asked for"
        except httptools.HttpParserError as error:
            problem = f"the model server's response is malformed: {error.__context__ or error}"
        if fresh and self._head is not None and self._keep_alive and not (problem or self._excess):
            self._owner.known_heads.learn(data, self._head)
        self._deliver(request, len(data), problem)

    def eof_received(self) -> None:
        self._broke_off("the model server closed the connection", eof=True)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._last_words is not None and self._head is None:
            words = self._last_words.read()
            if words:
                self.data_received(words)
        self._parser = None  # it refers back to us
        reason = f": {exc}" if exc is not None else ""
        self._broke_off(f"the connection to the model server broke{reason}")
        self._owner.closed(self)

    # ------------------------------------------------------------------ for the parser

    def on_message_begin(self) -> None:
        if self._complete:
            self._excess = True
        self._touched = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:
            return  # a trailer, or the head of what nobody asked for
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            raise ValueError(f"its head is larger than {HEAD_LIMIT_BYTES} bytes")
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head is not None or self.request is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        lines, self._lines = self._lines, []
        if status < 100:
            raise ValueError(f"its status is {status:03}")
        if status >= 200:
            self._head = read_head(status, self.request.method, lines)
            self._complete = self._head.bodiless

    def on_body(self, data: bytes) -> None:
        if self._head is not None and not self._complete:  # an interim response has none
            self._body_bytes += len(data)
            self._parts.append(data)

    def on_message_complete(self) -> None:
        if self._head is None:
            self._touched = False  # an interim response (1xx): the final one is still to come
        elif not self._excess and self._parser is not None:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive() and not self._head.contradictory

    # ------------------------------------------------------------------------ outcomes

    def _deliver(self, request: Request, size_bytes: int, problem: str) -> None:
        """Tell what the parser noted. The request may be cancelled by each of its callbacks."""
        self._unparsed_bytes += size_bytes
        if self._head is not None and not self._head_told:
            self._head_told = True
            self._unparsed_bytes = 0
            request.sink.on_head(self._head)
        if self._parts and self.request is request:
            parts = self._parts
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._unparsed_bytes = 0
            request.sink.on_body(data)
        if self.request is not request:
            return
        if self._complete:
            self._finish(request, problem)
        elif problem and self._head is None and self.reused and not request.resent:
            self._detach()  # what it says may belong to the exchange before this one
            self.abort()
            self._owner.resend(request)
        elif problem:
            self.break_off("model_failed", problem)
        elif self._unparsed_bytes > HEAD_LIMIT_BYTES:
            text = f"the model server sent {self._unparsed_bytes} bytes of framing and no body"
            self.break_off("model_failed", text)
        else:
            self._await_more()

    def _await_more(self) -> None:
        head, parser = self._head, self._parser
        if head is not None and parser is not None and not self._left:
            left = head.content_length - self._body_bytes
            if left > _LARGE_BYTES:
                self._left = left
                self._keep_alive = parser.should_keep_alive() and not head.contradictory
        if self._socket is not None:
            # else a server that waits until this has arrived (Nagle) would hear so 40 ms later
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _count(self, request: Request, data: bytes) -> None:
        """More of a large body, which the parser does not see: its length says where it ends."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            request.sink.on_body(data)
            if self.request is request:
                self._await_more()
            return
        self._excess = left < 0
        self._parser = httptools.HttpResponseParser(self)  # the old one waits for what came here
        request.sink.on_body(data[:left] if left else data)
        if self.request is request:
            self._finish(request, "")

    def _finish(self, request: Request, problem: str) -> None:
        self._release(self._keep_alive and not (self._excess or problem))
        self._clear()
        request.sink.on_end()

    def _release(self, good: bool) -> None:
        """The response is complete; ``good``: as far as it goes, another request may follow it."""
        # A server that answers before it has read the body leaves the rest of it in our buffer.
        transport = self._transport
        assert transport is not None
        unread = transport.get_write_buffer_size() > 0
        unread = unread or (self._feeder is not None and not self._feeder.done)
        reusable = good and not unread and not transport.is_closing()
        if self._paused:
            self.resume()
        self._detach()
        if not reusable:
            self.abort()
        self._owner.freed(self, reusable)

    def _broke_off(self, reason: str, eof: bool = False) -> None:
        """The connection ended, cleanly (``eof``) or not, with or without a request on it."""
        request = self._detach()
        if request is None:
            return
        if self._head is not None:
            if self._head.until_close and eof:
                request.sink.on_end()
            else:
                request.sink.on_broken("model_failed", f"{reason} in the middle of its response")
        elif self._touched:
            request.sink.on_broken("model_failed", f"{reason} within the head of its response")
        else:
            request.sink.on_lost(1 + request.resent, reason)

    def _detach(self) -> Request | None:
        request, self.request = self.request, None
        if request is not None:
            request.connection = None
        if self._feeder is not None:
            self._feeder.stop()
            self._feeder = None
        if self._last_words is not None:
            self._last_words.close()
            self._last_words = None
        return request
