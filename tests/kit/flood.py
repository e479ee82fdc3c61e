"""Clients that send bodies of any size without holding them, many at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 2**17


@dataclass
class Reply:
    """What a client got. ``sent``: bytes of the body that left before the reply came."""

    status: int
    headers: bytes
    body: bytes
    sent: int

    @property
    def kind(self) -> str:
        """``ok``, or the kind of the error."""
        return "ok" if self.status == 200 else str(json.loads(self.body)["error"]["kind"])


class Sender:
    """Bodies for one worker: an envelope around a payload of ``x`` of any length."""

    def __init__(self, url: str, auth: dict[str, Any]) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 0
        self._before = b'{"auth_data":' + json.dumps(auth).encode() + b',"payload":'
        self._inside = (b'{"inputs":"', b'"}')

    def payload(self, size: int) -> tuple[int, str]:
        """Length and digest of the payload that the model server gets."""
        digest = hashlib.sha256(self._inside[0])
        for start in range(0, size, PIECE_BYTES):
            digest.update(b"x" * min(PIECE_BYTES, size - start))
        digest.update(self._inside[1])
        return size + sum(map(len, self._inside)), digest.hexdigest()

    def head(self, size: int, path: str = "/generate", *, chunked: bool = False) -> bytes:
        """The head of a request whose payload's text has this length."""
        length = len(self._before) + size + sum(map(len, self._inside)) + 1
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {length}"
        return f"POST {path} HTTP/1.1\r\nhost: w\r\n{framing}\r\n\r\n".encode()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection, closed at the end."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**16)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def stall(self, data: bytes) -> None:
        """Send this, read nothing, and stay."""
        async with self.connected() as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's
            writer.write(data)
            await asyncio.Event().wait()

    async def post(self, size: int, path: str = "/generate", *, chunked: bool = False) -> Reply:
        """One request with a payload's text of this length, on a connection of its own."""
        async with self.connected() as (reader, writer):
            writer.write(self.head(size, path, chunked=chunked))
            reply = asyncio.create_task(_reply(reader))
            sent = 0
            try:
                for piece in self.pieces(size):
                    if reply.done():
                        break
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    await writer.drain()
                    await asyncio.sleep(0)  # the reply has its turn even if all is taken at once
                    sent += len(piece)
                if chunked and not reply.done():
                    writer.write(b"0\r\n\r\n")
            except ConnectionError:
                pass  # it was refused: the reply says why
            status, headers, body = await reply
            return Reply(status, headers, body, sent)

    def pieces(self, size: int) -> Iterator[bytes]:
        """The body of such a request."""
        yield self._before + self._inside[0]
        piece = b"x" * PIECE_BYTES
        for start in range(0, size, PIECE_BYTES):
            yield piece if size - start >= PIECE_BYTES else piece[: size - start]
        yield self._inside[1] + b"}"


Start = Callable[[Coroutine[Any, Any, Any]], "Future[Any]"]


@contextmanager
def clients() -> Iterator[Start]:
    """A loop in a thread of its own, and what starts a client on it; at the end all are gone."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started: list[Future[Any]] = []

    def start(work: Coroutine[Any, Any, Any]) -> Future[Any]:
        started.append(asyncio.run_coroutine_threadsafe(work, loop))
        return started[-1]

    async def leave() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield start
    finally:
        asyncio.run_coroutine_threadsafe(leave(), loop).result(30.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    return int(head.split(b" ", 2)[1]), head.lower(), await reader.readexactly(lengths[0])
