"""A client of the model server, what is sent by it, and who hears the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from backend_adapter.model_client import ModelClient
from backend_adapter.model_request import Request, Sink
from backend_adapter.response_headers import ResponseHead
from tests.kit.raw_server import Peer, RawServer, Script

DEADLINE_S = 20.0
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main, 3 * DEADLINE_S)

    uvloop.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.002)


class Recorder(Sink):
    """A sink that writes down what it hears, and fails on anything after the end."""

    def __init__(self) -> None:
        self.heads: list[ResponseHead] = []
        self.body = b""
        self.pieces = 0
        self.end: tuple[object, ...] | None = None
        self.ended = asyncio.Event()
        self.then: Callable[[], None] | None = None  #: called at the end, from inside it
        self.on_piece: Callable[[], None] | None = None

    @property
    def head(self) -> ResponseHead:
        assert len(self.heads) == 1
        return self.heads[0]

    def on_head(self, head: ResponseHead) -> None:
        assert self.end is None
        assert not self.heads
        self.heads.append(head)

    def on_body(self, data: bytes) -> None:
        assert self.end is None
        assert data
        self.body += data
        self.pieces += 1
        if self.on_piece is not None:
            self.on_piece()

    def on_end(self) -> None:
        self._ended("end")

    def on_lost(self, sent: bool, reason: str) -> None:
        self._ended("lost", sent, reason)

    def on_broken(self, kind: str, message: str) -> None:
        self._ended("broken", kind, message)

    def _ended(self, *outcome: object) -> None:
        assert self.end is None, f"a second end {outcome} after {self.end}"
        self.end = outcome
        self.ended.set()
        if self.then is not None:
            self.then()

    @property
    def outcome(self) -> tuple[object, ...]:
        """The end without its text."""
        assert self.end is not None
        return self.end if self.end[0] == "end" else self.end[:2]


def request(
    sink: Recorder,
    method: str = "POST",
    path: str = "/v1/x",
    body: bytes | memoryview = b"{}",
    headers: bytes = b"content-type: application/json\r\n",
    redeliver: bool = True,
) -> Request:
    return Request(method, path, headers, body, sink, redeliver=redeliver)


@asynccontextmanager
async def client_of(url: str, **settings: float) -> AsyncIterator[ModelClient]:
    loop = asyncio.get_running_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    client = ModelClient(url, loop, **{"connect_timeout_s": DEADLINE_S, **settings})  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()
        assert client.in_flight == client.idle == 0
        assert not failures


async def fetch(client: ModelClient, **how: Any) -> Recorder:
    sink = Recorder()
    client.send(request(sink, **how))
    await asyncio.wait_for(sink.ended.wait(), DEADLINE_S)
    return sink


def exchange(
    script: Script, check: Callable[[ModelClient, RawServer], Awaitable[None]], **settings: float
) -> None:
    async def main() -> None:
        async with RawServer(script) as server, client_of(server.url, **settings) as client:
            await check(client, server)

    run(main())


def responding(*pieces: bytes, close: bool = True) -> Script:
    """Reads one request, sends the pieces, then closes or holds."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
        if not close:
            await peer.hold()

    return script


async def serve_all(peer: Peer) -> None:
    while True:
        _, body = await peer.request()
        await peer.answer(body)


def outcome_of(script: Script, **how: Any) -> Recorder:
    """What a single request meets."""
    result: list[Recorder] = []

    async def check(client: ModelClient, server: RawServer) -> None:
        result.append(await fetch(client, **how))

    exchange(script, check)
    return result[0]
