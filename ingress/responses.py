"""The first bytes of a response: status line, Date, framing headers.

Everything that does not change between two responses is encoded once: one prefix per status,
thrown away when the second changes. There is no Server header: whom it helps is not our client.

Law: what leaves here is a complete head, framed exactly one way (a length, chunks, or the end of
the connection). The wall clock is handed in, and only printed.
"""

from __future__ import annotations

import http
import socket
import struct
import time

#: Interim answer to ``Expect: 100-continue``.
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Ends a chunked body.
LAST_CHUNK = b"0\r\n\r\n"

#: Statuses whose responses never have a body (RFC 9110 section 6.4.1).
BODILESS = frozenset({204, 304})

#: Bodies up to this size are joined with what frames them, larger ones are never copied, bytes.
JOIN_BYTES = 65_536

# How a head ends, by what becomes of the connection.
STAYS_OPEN = b"\r\n"
CLOSES = b"connection: close\r\n\r\n"
STAYS_OPEN_HTTP10 = b"connection: keep-alive\r\n\r\n"


def ending(keep_alive: bool, http10: bool) -> bytes:
    """The last lines of a head: what becomes of the connection, then the empty line."""
    if not keep_alive:
        return CLOSES
    return STAYS_OPEN_HTTP10 if http10 else STAYS_OPEN


def reset_at_close(client: socket.socket, on: bool) -> None:
    """Whether its close is to show that an answer broke off: a reset, no regular end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))


class Prefixes:
    """Status line and Date of every status in use.

    :param wall_s: seconds since 1970, for the Date header.
    """

    __slots__ = ("_date", "by_status")

    def __init__(self, wall_s: float) -> None:
        #: What is in use this second. May be read; ``of`` adds to it.
        self.by_status: dict[int, bytes] = {}
        self.tick(wall_s)

    def tick(self, wall_s: float) -> None:
        """Take a new second into the Date header. Call once a second."""
        # in English: this process never leaves the C locale
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(wall_s))
        self._date = f"date: {date}\r\n".encode()
        self.by_status.clear()

    def of(self, status: int) -> bytes:
        """Status line and Date header of ``status``; bounded by the 900 statuses there are.

        :raises ValueError: ``status`` is no final HTTP status (200–999).
        """
        prefix = self.by_status.get(status)
        if prefix is None:
            if not 200 <= status <= 999:
                raise ValueError(f"{status} is no final HTTP status; pass one from 200 to 999")
            try:
                phrase = http.HTTPStatus(status).phrase
            except ValueError:
                phrase = ""
            prefix = f"HTTP/1.1 {status} {phrase}\r\n".encode() + self._date
            self.by_status[status] = prefix
        return prefix

    def whole(
        self,
        status: int,
        headers: bytes,
        ending: bytes,
        body: bytes | memoryview,
        head_only: bool,
    ) -> tuple[bytes | memoryview, ...]:
        """A complete response, framed by its length, in one piece or two.

        :raises ValueError: as ``of``.
        """
        prefix = self.by_status.get(status) or self.of(status)
        if status in BODILESS:
            return (prefix + headers + ending,)
        size = len(body)
        head = b"%b%bcontent-length: %d\r\n%b" % (prefix, headers, size, ending)
        if head_only or not size:
            return (head,)
        return (head + body,) if size <= JOIN_BYTES else (head, body)
