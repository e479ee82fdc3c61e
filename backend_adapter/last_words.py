"""What a server said before it reset a connection on which a large body was under way.

A server that refuses a body often answers from the request's head, and closes without reading the
rest: the kernel then resets the connection, and whoever is sending finds that out before it reads.
The answer lies in the kernel all the same, and is had through a second descriptor of the socket.

Whether it closed in order or broke off can not be told from there: the failed sending has taken the
error with it. So a response is complete only where its own framing says so.

Law: after ``close`` the descriptor is gone; while it is open, so is the connection. Not known here:
HTTP, and what the words mean.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

#: Bytes that are read of them: a refusal is short.
MAX_BYTES = 65_536


class LastWords:
    """Those of one connection."""

    __slots__ = ("_fd",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._fd = -1
        used = transport.get_extra_info("socket")
        if used is not None:
            with suppress(OSError):  # no descriptor to spare: then they may be missed
                self._fd = os.dup(used.fileno())

    def read(self) -> bytes:
        """What lies there; empty: nothing."""
        if self._fd >= 0:
            with suppress(OSError):
                return os.read(self._fd, MAX_BYTES)
        return b""

    def close(self) -> None:
        """Let go of the connection."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
