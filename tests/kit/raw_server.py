"""A model server whose every byte a test decides: it accepts, and a script does the talking.

``RawServer(script)`` runs ``script(peer)`` for each connection, in the test's own event loop. When
the script returns, the connection is closed. A script that ends in ``await peer.hold()`` keeps it
open until the other side closes it, or the server is stopped.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType


class Peer:
    """One accepted connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number  #: 1 for the first connection of the server
        self.requests: list[tuple[bytes, bytes]] = []  #: (head, body) of what was read

    async def request(self) -> tuple[bytes, bytes]:
        """Read one whole request. Raises IncompleteReadError when the connection ends before."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        body = await self.reader.readexactly(size)
        self.requests.append((head, body))
        return head, body

    async def send(self, data: bytes) -> None:
        """Write, and wait until the kernel has taken most of it."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"ok", status: int = 200, headers: bytes = b"") -> None:
        """Send a complete response with a content-length."""
        head = b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n%b\r\n" % (status, len(body), headers)
        await self.send(head + body)

    async def hold(self) -> None:
        """Say nothing until the other side closes."""
        while await self.reader.read(65_536):
            pass

    def reset(self) -> None:
        """Break the connection with a RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class RawServer:
    """``async with RawServer(script) as server``: listens on ``server.url`` meanwhile."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.open = 0  #: connections whose script has not ended
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> int:
        return len(self.peers)

    @property
    def requests(self) -> list[tuple[bytes, bytes]]:
        return [request for peer in self.peers for request in peer.requests]

    def stop_listening(self) -> None:
        """Refuse new connections from now on; those that stand stay."""
        assert self._server is not None
        self._server.close()

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self.stop_listening()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer, len(self.peers) + 1)
        self.peers.append(peer)
        self.open += 1
        try:
            await self._script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side closed: often what the test is about
        except asyncio.CancelledError:
            writer.transport.abort()  # the server is stopped
        finally:
            self.open -= 1
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass
            self._tasks.discard(task)
