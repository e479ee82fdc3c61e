"""What leaves for one client: written, counted while it has not left, and given up on at last.

Law: bytes count as unsent until the kernel has them, whether or not TLS lies between; a client that
reads nothing for ``limits.write_timeout_s`` has stalled. This module knows no requests coming in:
``connection.py`` builds on it.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios

from ingress import responses
from ingress.request import Request
from ingress.shared import Shared

_NO_BYTES = bytes(4)  #: an int of C


class Sender(asyncio.Protocol):
    """The sending half of a client socket's protocol.

    :param shared: what it has in common with the server's other connections.
    :param below: with TLS, the transport that carries it.
    """

    __slots__ = (
        "_below",
        "_stall_deadline",
        "_transport",
        "_unsent_bytes",
        "shared",
        "writable",
    )

    _transport: asyncio.Transport

    def __init__(self, shared: Shared, below: asyncio.Transport | None = None) -> None:
        self.shared = shared
        #: No more than ``WRITE_HIGH_BYTES`` are unsent, or, since then, ``WRITE_LOW_BYTES``.
        self.writable = True
        self._below = below
        self._unsent_bytes = 0
        self._stall_deadline = 0.0

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that have not left this process."""
        below = 0 if self._below is None else self._below.get_write_buffer_size()
        return self._transport.get_write_buffer_size() + below

    @property
    def unread_bytes(self) -> int:
        """And those that the kernel holds until the client's side has taken them (Linux)."""
        held, client = _NO_BYTES, self._transport.get_extra_info("socket")
        if client is not None and client.fileno() >= 0:  # TLS that has ended has none
            try:
                held = fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, _NO_BYTES)
            except OSError:  # a system that cannot say: nothing counts as taken
                return sys.maxsize
        return self.unsent_bytes + int.from_bytes(held, sys.byteorder)

    def stalled(self, now: float) -> bool:
        """Whether the client has read nothing for too long; to be asked about once a second."""
        unsent = self.unsent_bytes
        if unsent != self._unsent_bytes:
            self._unsent_bytes = unsent
            self._stall_deadline = now + self.shared.limits.write_timeout_s
            return False
        return unsent > 0 and now >= self._stall_deadline

    def write(self, data: bytes | memoryview) -> None:
        """Send, as soon as the client takes it."""
        self._transport.write(data)

    def write_pieces(self, pieces: tuple[bytes | memoryview, ...]) -> None:
        """Send without copying."""
        self._transport.writelines(pieces)

    def send_whole(
        self,
        request: Request,
        status: int,
        headers: bytes,
        body: bytes | memoryview,
        keep_alive: bool,
    ) -> None:
        """Write a complete answer to ``request``, framed by its length."""
        ending = responses.ending(keep_alive, request.http10)
        prefixes = self.shared.prefixes
        head_only = request.method == b"HEAD"
        self._transport.writelines(prefixes.whole(status, headers, ending, body, head_only))

    def abort(self) -> None:
        """Close at once; an exchange under way ends in ``on_disconnect``."""
        self._transport.abort()

    def guard(self, on: bool) -> None:
        """While it is on, whatever ends the connection, this process's own death included, resets
        it: for an answer whose end is the connection's."""
        client = self._transport.get_extra_info("socket")
        if client is not None:
            responses.reset_at_close(client, on)
