"""Where one request ends and the next begins.

llhttp (through httptools) reads every head, strictly; bodies are cut out here. The parser is
never handed a byte beyond the message at hand, because it cannot be paused: everything after the
message stays with the caller until the answer has been given, so a connection holds one request
and some raw bytes, never a queue of parsed requests.

Law: what is accepted, and the requests that come out, do not depend on how the bytes were cut
into pieces. What two readers could read differently is refused (RFC 9112 section 11.2): both
lengths, repeated lengths, bare LF, folded lines, spaces before a colon. Those llhttp refuses;
refused here are several, odd or no Host, unknown transfer codings, chunks in HTTP/1.0, fragments in
the target and odd versions, all of which it lets pass.

Bounds: a head takes at most ``request_line_bytes + header_bytes`` and one read of the socket; a
body (``body.py``) its own limit. This module knows no socket, no clock and no application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import httptools

from ingress.body import Body, ChunkedBody, SizedBody, too_large
from ingress.budget import SOFT_LARGE_BYTES
from ingress.errors import ErrorKind, Problem
from ingress.known_requests import MAX_DIGITS, Known, KnownRequests
from ingress.request import Request
from ingress.responses import LAST_CHUNK
from ingress.spool import SpoolFile
from supervisor.settings import LimitSettings

_HEAD_END = b"\r\n\r\n"
_TLS_HANDSHAKE = 0x16
#: What may be in a Host (RFC 3986 section 3.2, without user and password).
_HOST = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+;=:[]"
_NOTED = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"proxy-connection",
        b"transfer-encoding",
    }
)


R = TypeVar("R", bound=Request)


class Framer(Generic[R]):
    """Cuts the bytes of one connection into requests, one at a time.

    Feed each piece to ``head`` until it returns an offset, then, if ``request.has_body``, to
    ``body`` until that does; ``request`` is complete then, but for a body that goes into a file.
    Call ``next`` before the next head. Anything wrong raises ``Problem``, and the framer is of no
    further use.

    :param limits: bounds of what is accepted.
    :param new_request: makes the empty object that a request is read into.
    :param known: heads that were read before, on any connection of the server.
    """

    __slots__ = (
        "_body",
        "_expect",
        "_head_complete",
        "_header_bytes",
        "_header_count",
        "_in_steps",
        "_known",
        "_limits",
        "_new_request",
        "_noted_connection",
        "_parser",
        "_recalled",
        "_tail",
        "_target",
        "_upgraded",
        "begun",
        "body_bytes",
        "head_bytes",
        "request",
    )

    def __init__(
        self,
        limits: LimitSettings,
        new_request: Callable[[], R],
        known: KnownRequests | None = None,
    ) -> None:
        self._limits = limits
        self._known = known if known is not None else KnownRequests()
        self._header_count = limits.header_count
        self._header_bytes = limits.header_bytes
        self._new_request = new_request
        self._parser = httptools.HttpRequestParser(self)
        self._in_steps = True
        self.next()

    def close(self) -> None:
        """Let go of what points back here, so that memory is freed at once."""
        del self._parser, self._new_request, self.request

    def next(self) -> None:
        """Forget the request that was read and get ready for the next."""
        #: The request that is being read.
        self.request = self._new_request()
        #: A byte of it has come.
        self.begun = False
        #: Bytes of its head so far.
        self.head_bytes = 0
        #: Bytes of its body held so far.
        self.body_bytes = 0
        if not self._in_steps:  # ``whole`` touches nothing else
            return
        #: ``head`` has had it.
        self._in_steps = False
        #: Collects a body that comes in pieces.
        self._body: Body | None = None
        self._target = b""
        self._head_complete = False
        self._noted_connection = False
        self._expect = b""
        #: The last bytes of a head that is not complete: its end may be cut in two.
        self._tail = b""
        #: The head offers another protocol: the parser believes that the message ended there.
        self._upgraded = False
        #: The head was known: the parser has not seen it.
        self._recalled = False

    # ------------------------------------------------------------------ head

    def head(self, data: bytes, start: int = 0) -> int:
        """Read the head from ``data[start:]``.

        :return: offset of the first byte after the head; -1: all was read and more is needed.
        :raises Problem: invalid_request, uri_too_long, too_many_headers, http_version,
            expectation_failed, body_too_large.
        """
        size = len(data)
        fresh = not self.begun
        if not fresh:
            probe = self._tail + data[start:]
            end = probe.find(_HEAD_END)
            stop = start + end + 4 - len(self._tail) if end >= 0 else size
        else:
            if data[start] in _HEAD_END:
                # Empty lines before a request are ignored (RFC 9112 section 2.2).
                start = size - len(data[start:].lstrip(_HEAD_END))
                if start == size:
                    return -1
            self.begun = self._in_steps = True
            probe = data
            end = data.find(_HEAD_END, start)
            stop = end + 4 if end >= 0 else size
        piece = data if stop - start == size else data[start:stop]
        if fresh and end >= 0 and (known := self._known.find(piece)) is not None:
            self._recall(known, len(piece))
            self._recalled = True
            return stop
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # Another protocol is offered, not demanded: the answer comes in this one.
            self._upgraded = True
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, Problem):  # raised in one of the callbacks below
                raise error.__context__ from None
            raise self._explain(str(error), piece) from None
        self.head_bytes += len(piece)
        if self.head_bytes > self._header_bytes:
            self._check_head_size(complete=end >= 0)
        if self._head_complete != (end >= 0):
            raise self._explain("the head has no proper end", piece)
        if end >= 0:
            if fresh:
                self._learn(piece)
            return stop
        self._tail = probe[-3:]
        return -1

    def whole(self, data: bytes) -> bool:
        """Whether ``data`` is exactly one request, with a known head and a body that is not large
        by any measure: then it has been read. Otherwise nothing has.
        """
        if self.begun:
            return False
        stop = data.find(_HEAD_END) + 4
        size = len(data) - stop
        known = self._known.find(data[:stop]) if 0 < size < SOFT_LARGE_BYTES else None
        if known is None or known.content_length != size or size > self._limits.body_bytes:
            return False
        self.begun = True
        self._recall(known, stop)
        self.request.body = data[stop:]
        self.body_bytes = size
        return True

    def _recall(self, known: Known, head_bytes: int) -> None:
        """The head is one that was read before."""
        request = self.request
        (
            request.method, request.path, request.query, request.host, request.content_type,
            request.content_encoding, request.keep_alive, request.http10, size, request.headers,
        ) = known  # fmt: skip
        self.head_bytes = head_bytes
        request.content_length = size
        request.has_body = size > 0
        if size > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)

    def _learn(self, head: bytes) -> None:
        """It came in one piece. Whether its size is within bounds must not hang on the digits."""
        request = self.request
        odd = request.chunked or self._expect or self._upgraded
        if request.content_length < 0 or odd or len(head) + MAX_DIGITS > self._header_bytes:
            return
        known = Known(
            request.method, request.path, request.query, request.host, request.content_type,
            request.content_encoding, request.keep_alive, request.http10, request.content_length,
            request.headers,
        )  # fmt: skip
        self._known.learn(head, known)

    def _check_head_size(self, complete: bool) -> None:
        limits = self._limits
        line_bytes = limits.request_line_bytes
        if complete:
            line_bytes = len(self.request.method) + len(self._target) + len("  HTTP/1.1\r\n")
        if self.head_bytes > limits.header_bytes + line_bytes:
            raise Problem(
                ErrorKind.TOO_MANY_HEADERS,
                f"The headers are over {limits.header_bytes} bytes; send fewer or shorter ones.",
            )

    def _explain(self, reason: str, piece: bytes) -> Problem:
        """What llhttp did not accept, in words that help."""
        if not self._target and piece[0] == _TLS_HANDSHAKE:
            return Problem(
                ErrorKind.INVALID_REQUEST,
                "This port speaks plain HTTP, and the client began with TLS; use http://.",
            )
        if self._parser.get_method() == b"PRI" or reason == "Invalid HTTP version":
            return Problem(ErrorKind.HTTP_VERSION)
        return Problem(
            ErrorKind.INVALID_REQUEST, f"The bytes received are no valid HTTP/1.1: {reason}."
        )

    def on_url(self, piece: bytes) -> None:
        """httptools: a piece of the request target."""
        self._target = target = self._target + piece if self._target else piece
        if len(target) > self._limits.request_line_bytes:
            raise self._line_too_long()

    def _line_too_long(self) -> Problem:
        return Problem(
            ErrorKind.URI_TOO_LONG,
            f"The request line is over {self._limits.request_line_bytes} bytes; put long input"
            " into the body.",
        )

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header line."""
        name = name.lower()
        value = value.rstrip()
        request = self.request
        headers = request.headers
        if len(headers) == self._header_count:
            raise Problem(
                ErrorKind.TOO_MANY_HEADERS,
                f"The request has more than {self._limits.header_count} header lines.",
            )
        headers.append((name, value))
        if name not in _NOTED:
            return
        if name == b"host":
            if request.host is not None:
                raise Problem(ErrorKind.INVALID_REQUEST, "The request has two Host headers.")
            if value.translate(None, _HOST):
                raise Problem(ErrorKind.INVALID_REQUEST, "The Host header names no host.")
            request.host = value
        elif name == b"content-length":
            if len(value) > 20:
                raise Problem(ErrorKind.INVALID_REQUEST, "Content-Length has too many digits.")
            request.content_length = int(value)
        elif name == b"content-type":
            request.content_type = request.content_type or value.lower()
        elif name == b"content-encoding":
            request.content_encoding = request.content_encoding or value
        elif name == b"expect":
            self._expect = value.lower() if not self._expect else b"several"
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Problem(
                    ErrorKind.INVALID_REQUEST, "The only transfer coding understood is chunked."
                )
            request.chunked = True
        else:
            self._noted_connection = True

    def on_headers_complete(self) -> None:
        """httptools: the empty line after the headers."""
        self._head_complete = True
        request = self.request
        parser = self._parser
        request.method = parser.get_method()
        request.keep_alive = parser.should_keep_alive()
        if not request.keep_alive or self._noted_connection:
            # Only HTTP/1.1 stays open by itself; asking for the version costs a formatted string.
            version = parser.get_http_version()
            if version not in ("1.1", "1.0"):
                raise Problem(ErrorKind.HTTP_VERSION)
            request.http10 = version == "1.0"
        target = self._target
        if len(request.method) + len(target) + len("  HTTP/1.1") > self._limits.request_line_bytes:
            raise self._line_too_long()
        if b"#" in target:
            raise Problem(ErrorKind.INVALID_REQUEST, "The request target has a fragment (#).")
        request.path, _, request.query = target.partition(b"?")
        if target[0] != 0x2F:
            if b"://" in request.path:
                # The form meant for proxies: scheme://authority/path (RFC 9112 section 3.2.2).
                request.path = b"/" + request.path.partition(b"://")[2].partition(b"/")[2]
            elif request.method == b"CONNECT":
                request.keep_alive = False  # what follows is meant for somebody else
        if request.host is None and not request.http10:
            raise Problem(ErrorKind.INVALID_REQUEST, "The request has no Host header.")
        if request.content_length > 0:
            if request.content_length > self._limits.body_bytes:
                raise too_large(self._limits.body_bytes)
            request.has_body = True
        elif request.chunked:
            request.has_body = True
            if request.http10:
                raise Problem(ErrorKind.INVALID_REQUEST, "HTTP/1.0 has no chunks; use HTTP/1.1.")
            self._body = ChunkedBody(self._limits.body_bytes)
        if self._expect and not request.http10:
            if self._expect != b"100-continue":
                raise Problem(ErrorKind.EXPECTATION_FAILED)
            request.expects_continue = request.has_body

    # ------------------------------------------------------------------ body

    def spool(self, file: SpoolFile) -> None:
        """The body goes into this file. Raises Problem (memory)."""
        if self._body is None:
            self._body = SizedBody(self.request.content_length)
        self._body.spool(file)

    def body(self, data: bytes, start: int = 0) -> int:
        """Read the body from ``data[start:]``; ``request.body`` is set once it is complete.

        :return: offset of the first byte after the body; -1: all was read and more is needed.
        :raises Problem: body_too_large, invalid_request, too_many_headers, memory.
        """
        request = self.request
        body = self._body
        if body is None:
            stop = start + request.content_length
            if stop <= len(data):
                # It came in one piece, as most do: nothing to collect.
                request.body = body_bytes = data[start:stop]
                self.body_bytes = request.content_length
            else:
                body = self._body = SizedBody(request.content_length)
        if body is not None:
            stop = body.read(data, start)
            self.body_bytes = body.size_bytes
            if stop < 0:
                return -1
            request.body = body_bytes = body.join()
        if request.file is not None and not self._recalled:
            # It would have to see the body to go on.
            self._parser = httptools.HttpRequestParser(self)
        elif not (self._upgraded or self._recalled):
            # Without an on_body the parser only counts, which costs nothing. Chunks it has not
            # seen: an empty body is as good to it.
            self._parser.feed_data(LAST_CHUNK if request.chunked else body_bytes)
        return stop
