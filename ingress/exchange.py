"""One request and its answer, as the application sees them.

Law: an answer is given in exactly one way (respond; or begin, write, finish; or fail; or abort)
and framed in exactly one way (by its length, in chunks, or by the end of the connection). One
that cannot be completed never looks complete to the client: it is cut off. Calls after the end do
nothing, so that an answer and a departure may cross.

This module knows what bytes an answer is made of; when they leave is ``connection.py``'s matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ingress import responses
from ingress.errors import ErrorKind, Problem
from ingress.request import Request
from ingress.responses import JOIN_BYTES

if TYPE_CHECKING:
    from ingress.connection import Connection

# How far an answer has come, and how a begun one is framed.
_WAITING, _SIZED, _CHUNKED, _TO_CLOSE, _BODILESS, _ENDED = range(6)


class Application(Protocol):
    """What the server asks. Must not block. A ``Problem`` that is raised is the answer, any other
    exception becomes a 500."""

    def on_head(self, exchange: Exchange) -> ErrorKind | Problem | None:
        """The head is complete, the body unread. A return other than None refuses the request;
        a refused request with a body costs its connection, because the body is not read."""

    def on_request(self, exchange: Exchange) -> None:
        """The request is complete. Answer now or later."""

    def on_writable(self, exchange: Exchange) -> None:
        """What was written to a begun answer has left for the client: ``writable`` again."""

    def on_disconnect(self, exchange: Exchange) -> None:
        """The client left after ``on_request`` and before its answer ended."""


class Exchange(Request):
    """One request and its answer.

    ``arrived_at`` is the monotonic time of its head; ``context`` belongs to the application.
    """

    # no msgspec.Struct: what is set after it was made is set slowly there
    __slots__ = ("_left", "_phase", "arrived_at", "connection", "context")

    def __init__(self, connection: Connection) -> None:
        Request.__init__(self)  # not super(): this runs once per request
        self.connection = connection
        self.arrived_at = 0.0
        self.context: Any = None
        self._phase = _WAITING
        self._left = 0

    @property
    def begun(self) -> bool:
        """Whether the head of the answer has been sent."""
        return self._phase != _WAITING

    @property
    def ended(self) -> bool:
        """Whether the answer has ended, or nobody is there to read it."""
        return self._phase == _ENDED

    @property
    def writable(self) -> bool:
        """Whether what was written so far has left, all but ``shared.WRITE_HIGH_BYTES``."""
        return self.connection.writable

    @property
    def unread_bytes(self) -> int:
        """Bytes written that the client's side has not taken: unsent, or with our kernel."""
        return self.connection.unread_bytes

    def release_body(self) -> None:
        """Let go of body and headers. The body counts against ``buffered_bytes`` until the answer
        has ended, because the application holds a part of it; so does its file stay."""
        self.body = b""
        self.headers = []

    def replace_body(self, body: bytes) -> None:
        """The application holds this in place of the body. Raises Problem (memory)."""
        intake = self.connection.shared.intake
        intake.count(self.connection, len(body))
        intake.drop(self)

    def respond(self, status: int, headers: bytes, body: bytes | memoryview = b"") -> None:
        """The whole answer.

        :param headers: complete header lines without framing ones, each ending in CRLF.
        """
        if self._phase != _WAITING:
            return
        connection = self.connection
        keep_alive = self.keep_alive and not connection.shared.draining
        try:
            connection.send_whole(self, status, headers, body, keep_alive)
        except ValueError as error:
            self.fail(Problem(ErrorKind.INTERNAL, str(error)))
            return
        self._phase = _ENDED
        connection.end_exchange(keep_alive)

    def fail(self, fault: ErrorKind | Problem) -> None:
        """A typed error as the whole answer; an answer that has begun is aborted instead."""
        if self._phase == _WAITING:
            problem = fault if isinstance(fault, Problem) else Problem(fault)
            self.respond(problem.status, problem.header_lines(), problem.body())
        else:
            self.abort()

    def begin(self, status: int, headers: bytes, content_length: int = -1) -> None:
        """Send the head; ``write`` and ``finish`` follow.

        :param headers: as for ``respond``.
        :param content_length: bytes that will be written; -1: unknown, then the body is chunked,
            or ends with the connection for an HTTP/1.0 client.
        """
        if self._phase != _WAITING:
            return
        connection = self.connection
        try:
            prefix = connection.shared.prefixes.of(status)
        except ValueError as error:
            self.fail(Problem(ErrorKind.INTERNAL, str(error)))
            return
        bodiless = status in responses.BODILESS
        framing = b""
        if content_length >= 0:
            self._phase = _SIZED
            self._left = content_length
            if not bodiless:
                framing = b"content-length: %d\r\n" % content_length
        elif self.http10:
            self._phase = _TO_CLOSE
            self.keep_alive = False
        else:
            self._phase = _CHUNKED
            if not bodiless:
                framing = b"transfer-encoding: chunked\r\n"
        if bodiless or self.method == b"HEAD":
            self._phase = _BODILESS
        if connection.shared.draining:
            self.keep_alive = False
        if self._phase == _TO_CLOSE:
            connection.guard(True)
        ending = responses.ending(self.keep_alive, self.http10)
        connection.write(b"".join((prefix, headers, framing, ending)))

    def write(self, data: bytes | memoryview) -> None:
        """Send a piece of the begun answer. Writing more than announced aborts it."""
        size = len(data)
        if not size:
            return  # as a chunk it would be the last
        phase = self._phase
        connection = self.connection
        if phase == _CHUNKED:
            if size <= JOIN_BYTES:
                connection.write(b"".join((b"%x\r\n" % size, data, b"\r\n")))
            else:
                connection.write_pieces((b"%x\r\n" % size, data, b"\r\n"))
        elif phase == _TO_CLOSE:
            connection.write(_kept(data))
        elif phase == _SIZED:
            if size > self._left:
                self.abort()
                return
            self._left -= size
            connection.write(_kept(data))

    def finish(self) -> None:
        """The begun answer is complete. One that is shorter than announced is aborted."""
        phase = self._phase
        if phase in (_WAITING, _ENDED):
            return
        if phase == _SIZED and self._left:
            self.abort()
            return
        self._phase = _ENDED
        if phase == _CHUNKED:
            self.connection.write(responses.LAST_CHUNK)
        elif phase == _TO_CLOSE:
            self.connection.guard(False)
        self.connection.end_exchange(self.keep_alive)

    def abort(self) -> None:
        """Cut the connection after what was written, so that the client sees a broken answer."""
        phase = self._phase
        if phase == _ENDED:
            return
        self._phase = _ENDED
        # Chunks and lengths show by themselves that something is missing. Without either a
        # regular close would look like the end.
        self.connection.cut(reset=phase == _TO_CLOSE)

    def client_gone(self) -> None:
        """Connection: nobody is left to answer; later calls do nothing."""
        self._phase = _ENDED


def _kept(data: bytes | memoryview) -> bytes | memoryview:
    """Data that may wait for its client. A small view may be one of much more, so it is copied."""
    return data if len(data) > JOIN_BYTES else bytes(data)
