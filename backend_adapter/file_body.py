"""A request's body that lies in a file, on its way to the model server.

Law: it goes out piece by piece, and no further piece is read while the model server does not take
what was sent; so a body of any size costs one piece of memory. The file is open only meanwhile, and
stays readable to its end although its owner, an ingress, may remove it.

Not known here: HTTP, and what becomes of a request whose body cannot be read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from backend_adapter.messages import FilePart

#: Bytes that are read at a time. As many again may be unsent without the transport's asking for
#: patience.
PIECE_BYTES = 65_536
#: Pieces that are sent before the loop gets its turn.
PIECES_A_TURN = 32


class Feeder:
    """Sends one such body on one connection.

    ``failed``: told, never before ``start`` has returned, why it cannot be sent whole.
    """

    __slots__ = ("_failed", "_fd", "_left", "_loop", "_offset", "_path", "_transport", "_writable")

    def __init__(
        self,
        body: FilePart,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[str], None],
    ) -> None:
        self._path = body.path
        self._transport = transport
        self._loop = loop
        self._failed = failed
        self._offset, self._left = body.offset, body.size
        self._writable = True
        self._fd = -1

    def start(self) -> None:
        """Send as much as is taken now."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._fail(error.strerror or "it is gone")
        else:
            self._go()

    @property
    def done(self) -> bool:
        """All of it was handed to the transport."""
        return self._left == 0

    def pause(self) -> None:
        """The transport holds enough."""
        self._writable = False

    def resume(self) -> None:
        """It takes more."""
        self._writable = True
        self._go()

    def stop(self) -> None:
        """Send no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _go(self) -> None:
        for _ in range(PIECES_A_TURN):
            if self._fd < 0 or not self._writable:
                return
            try:
                piece = os.pread(self._fd, min(PIECE_BYTES, self._left), self._offset)
            except OSError as error:
                self._fail(error.strerror or "it is gone")
                return
            if not piece:
                self._fail("it is shorter than it was")
                return
            self._offset += len(piece)
            self._left -= len(piece)
            if not self._left:
                self.stop()
            self._transport.write(piece)
        self._loop.call_soon(self._go)

    def _fail(self, reason: str) -> None:
        self.stop()
        text = f"the worker cannot read the request's body again: {reason}"
        self._loop.call_soon(self._failed, text)
