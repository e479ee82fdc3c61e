"""The ingress's HTTP server over real sockets: what it accepts, refuses, promises and cleans up."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ingress.deaf_port import deafen
from ingress.errors import KINDS, ErrorKind, Problem
from ingress.http import Exchange, Server
from ingress.patience import PIPELINE_S
from ingress.shared import HOLD_BYTES, LINGER_S, OVERFLOW_CONNECTIONS, WRITE_HIGH_BYTES
from supervisor.settings import LimitSettings
from tests.kit.bad_requests import Requests
from tests.kit.certificates import make_pair
from tests.kit.wait import DEADLINE_S, wait_until_async

JSON = b"content-type: application/json\r\n"
BIG = b"y" * 50_000
HELLO = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"


class App:
    """Answers by path: /echo at once, /hold never by itself, the others as their names say."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.requests: list[Exchange] = []
        self.gone: list[Exchange] = []
        self.writable: list[Exchange] = []

    def on_head(self, exchange: Exchange) -> ErrorKind | Problem | None:
        self.heads.append(exchange.path)
        if exchange.path == b"/refused":
            return ErrorKind.UNKNOWN_ROUTE
        if exchange.path == b"/busy":
            return Problem(ErrorKind.QUEUE_FULL, "Come back.", 2.5, headers=b"x-why: busy\r\n")
        if exchange.path == b"/head-crash":
            raise RuntimeError("head")
        return None

    def on_request(self, exchange: Exchange) -> None:
        self.requests.append(exchange)
        if exchange.path == b"/echo":
            text = b"%b %b %b" % (exchange.method, exchange.query, exchange.body)
            exchange.respond(200, b"content-type: text/plain\r\n", text)
        elif exchange.path == b"/big":
            exchange.respond(200, b"", BIG)
        elif exchange.path == b"/crash":
            raise RuntimeError("request")
        elif exchange.path == b"/problem":
            raise Problem(ErrorKind.INVALID_JSON)

    def on_writable(self, exchange: Exchange) -> None:
        self.writable.append(exchange)

    def on_disconnect(self, exchange: Exchange) -> None:
        self.gone.append(exchange)


class Rig:
    """A server on loopback, its application, and clients."""

    def __init__(self, app: App, server: Server, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port
        self.faults: list[dict[str, Any]] = []
        self.crashes: list[logging.LogRecord] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def talk(self, data: bytes) -> bytes:
        """Send, and read until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        return await asyncio.wait_for(reader.read(), DEADLINE_S)

    async def held(self, count: int = 1) -> Exchange:
        await wait_until_async(lambda: len(self.app.requests) >= count)
        return self.app.requests[count - 1]

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self.server.close()
        await wait_until_async(lambda: not self.server.connections)
        assert self.server.active == 0
        assert self.server.buffered_bytes == 0


def serve(scenario: Callable[[Rig], Awaitable[None]], **limits: Any) -> None:
    """Run one scenario against a fresh server; at its end nothing may be counted any more."""

    async def main() -> None:
        app = App()
        loop = asyncio.get_running_loop()
        server = Server(app, LimitSettings(**limits), loop)
        rig = Rig(app, server, await server.listen("127.0.0.1", 0))
        loop.set_exception_handler(lambda _, context: rig.faults.append(context))
        handler = logging.Handler(logging.CRITICAL)
        handler.emit = rig.crashes.append  # type: ignore[method-assign]
        logging.getLogger("ingress").addHandler(handler)
        try:
            await scenario(rig)
        finally:
            logging.getLogger("ingress").removeHandler(handler)
            await rig.close()
            assert rig.faults == []

    uvloop.run(main())


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One answer framed by Content-Length: head and body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return head, await reader.readexactly(int(line[16:]))
    raise AssertionError(head)


def post(path: bytes, body: bytes, *lines: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % (path, len(body))
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def chunked(*rest: bytes) -> bytes:
    return b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(rest)


# ------------------------------------------------------------------------------- refusals

REQUESTS = Requests(b"/echo", b"abc")
BAD = REQUESTS.heads() | REQUESTS.lengths() | REQUESTS.bad_chunks()


def check_refused(rig: Rig, answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"\r\nconnection: close" in head
    error = json.loads(body)["error"]
    assert KINDS[error["kind"]].status == status
    assert error["message"]
    assert rig.app.requests == []
    assert rig.server.refused == {error["kind"]: 1}
    assert rig.faults == []


@pytest.mark.parametrize("name", BAD)
def test_malformed_requests_are_refused(name: str) -> None:
    bad = BAD[name]

    async def scenario(rig: Rig) -> None:
        # What comes behind it is no request either.
        check_refused(rig, await rig.talk(bad.data + HELLO), bad.kind.status)

    serve(scenario)


@pytest.mark.parametrize("name", REQUESTS.taken())
def test_unusual_requests_have_one_reading(name: str) -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(REQUESTS.taken()[name] + HELLO)
        answer = await asyncio.wait_for(reader.readuntil(b"POST  abc"), DEADLINE_S)
        assert b"HTTP/1.1 200 OK\r\n" in answer
        assert (await read_answer(reader))[1] == b"GET  "
        assert [one.body for one in rig.app.requests] == [b"abc", b""]

    serve(scenario)


LIMITS: dict[str, Any] = {
    "request_line_bytes": 100,
    "header_bytes": 300,
    "header_count": 5,
    "body_bytes": 1000,
}
OVER_THE_LIMIT = {
    "request line": (b"GET /" + b"a" * 87 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "request line without an end": (b"GET /" + b"a" * 500, 414),
    "header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 400 + b"\r\n\r\n", 431),
    "header without an end": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 500, 431),
    "one header byte": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 285 + b"\r\n\r\n", 431),
    "header count": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 5 + b"\r\n", 431),
    "declared length": (post(b"/echo", b"a" * 1001), 413),
    "one chunk": (chunked(b"3e9\r\n"), 413),
    "chunks together": (chunked(b"1f4\r\n" + b"a" * 500 + b"\r\n1f5\r\n"), 413),
    "trailers": (chunked(b"0\r\n" + b"a: b\r\n" * 1000), 431),
}
WITHIN_THE_LIMIT = {
    "request line": b"GET /echo?" + b"a" * 81 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "header": b"GET /echo HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 284 + b"\r\n\r\n",
    "header count": b"GET /echo HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 4 + b"\r\n",
    "declared length": post(b"/echo", b"a" * 1000),
    "chunks": chunked(b"1f4\r\n" + b"a" * 500 + b"\r\n1f4\r\n" + b"a" * 500 + b"\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", OVER_THE_LIMIT)
def test_a_byte_over_a_limit_is_refused(name: str) -> None:
    data, status = OVER_THE_LIMIT[name]

    async def scenario(rig: Rig) -> None:
        check_refused(rig, await rig.talk(data), status)

    serve(scenario, **LIMITS)


@pytest.mark.parametrize("name", WITHIN_THE_LIMIT)
def test_the_limit_itself_is_allowed(name: str) -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(WITHIN_THE_LIMIT[name])
        head, _ = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")

    serve(scenario, **LIMITS)


# ------------------------------------------------------------------------------- what is understood


def test_targets_headers_and_unusual_heads() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        for target, path, query in (
            (b"/echo?a=b?c", b"/echo", b"a=b?c"),
            (b"http://a/echo?x=1", b"/echo", b"x=1"),
        ):
            writer.write(b"\r\n\r\nGET %b HTTP/1.1\r\nHOST: a\r\nX-Y: \t z \t\r\n\r\n" % target)
            await read_answer(reader)
            exchange = rig.app.requests[-1]
            assert (exchange.path, exchange.query) == (path, query)
            assert exchange.headers == [(b"host", b"a"), (b"x-y", b"z")]
            assert exchange.header(b"x-y") == b"z"
            assert exchange.header(b"absent") is None

    serve(scenario)


@pytest.mark.parametrize(
    "request_head", [b"OPTIONS * HTTP/1.1", b"CONNECT a:80 HTTP/1.1", b"GET http://a HTTP/1.1"]
)
def test_other_forms_of_target_reach_the_application(request_head: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(request_head + b"\r\nHost: a\r\n\r\n")
        exchange = await rig.held()
        exchange.fail(ErrorKind.UNKNOWN_ROUTE)
        assert exchange.path in (b"*", b"a:80", b"/")

    serve(scenario)


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_an_offered_upgrade_is_ignored(framing: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        body = b"abc" if b"Length" in framing else b"3\r\nabc\r\n0\r\n\r\n"
        for _ in range(2):
            writer.write(
                b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
                + framing
                + b"\r\n\r\n"
                + body
            )
            head, text = await read_answer(reader)
            assert head.startswith(b"HTTP/1.1 200")
            assert text == b"POST  abc"
            writer.write(HELLO)
            assert (await read_answer(reader))[1] == b"GET  "

    serve(scenario)


def test_answers_carry_a_date_and_no_server() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(HELLO)
        head, _ = await read_answer(reader)
        assert b"\r\ndate: " in head
        assert b"GMT\r\n" in head
        assert b"server" not in head.lower()
        assert b"connection" not in head

    serve(scenario)


def test_chunk_extensions_and_trailers_are_dropped() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(chunked(b'3;a="b"\r\nabc\r\n2\r\nde\r\n0\r\nX-Late: y\r\n\r\n') + HELLO)
        assert (await read_answer(reader))[1] == b"POST  abcde"
        assert (await read_answer(reader))[1] == b"GET  "
        assert rig.app.requests[0].header(b"x-late") is None

    serve(scenario)


def test_head_gets_the_head_alone() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.talk(b"HEAD /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"\r\ncontent-length: 6\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")
        for length in (-1, 7):
            reader, writer = await rig.connect()
            writer.write(b"HEAD /hold HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            exchange = await rig.held(len(rig.app.requests) + 1)
            exchange.begin(200, b"", length)
            exchange.write(b"nothing")
            exchange.finish()
            answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
            assert answer.endswith(b"\r\nconnection: close\r\n\r\n")

    serve(scenario)


def test_statuses_without_a_body() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        for status in (204, 304):
            writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
            exchange = await rig.held(len(rig.app.requests) + 1)
            exchange.respond(status, b"", b"dropped")
            exchange = await rig.held(len(rig.app.requests) + 1)
            exchange.begin(status, b"", -1)
            exchange.write(b"dropped")
            exchange.finish()
            for _ in range(2):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
                assert head.startswith(b"HTTP/1.1 %d " % status)
                assert b"content-length" not in head
                assert b"transfer-encoding" not in head

    serve(scenario)


def test_a_status_that_is_none_becomes_a_500() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        for begin in (False, True):
            writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
            exchange = await rig.held(len(rig.app.requests) + 1)
            if begin:
                exchange.begin(101, b"")
            else:
                exchange.respond(7, b"")
            head, _ = await read_answer(reader)
            assert head.startswith(b"HTTP/1.1 500 ")

    serve(scenario)


# ------------------------------------------------------------------------------- connections


def test_pipelined_requests_are_answered_one_at_a_time_and_in_order() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"".join(post(b"/hold", b"%d" % n) for n in range(5)))
        for n in range(5):
            exchange = await rig.held(n + 1)
            assert len(rig.app.requests) == n + 1
            exchange.respond(200, b"", exchange.body)
        for n in range(5):
            assert (await read_answer(reader))[1] == b"%d" % n

    serve(scenario)


def test_pipelined_bytes_are_bounded_and_none_is_lost() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        one = post(b"/echo", b"x" * 1000)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" + one * 2000)
        exchange = await rig.held()
        (connection,) = rig.server._shared.connections
        await wait_until_async(lambda: connection._reading_paused)
        assert len(connection._held) <= HOLD_BYTES + 256_000
        exchange.respond(200, b"", b"first")
        assert (await read_answer(reader))[1] == b"first"
        for _ in range(2000):
            assert (await read_answer(reader))[1] == b"POST  " + b"x" * 1000

    serve(scenario)


def test_a_client_that_does_not_read_is_not_served_further() -> None:
    async def scenario(rig: Rig) -> None:
        count = 1000
        with socket.create_connection(("127.0.0.1", rig.port)) as client:
            client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" * count)
            client.setblocking(False)
            await wait_until_async(lambda: any(c._held for c in rig.server._shared.connections))
            (connection,) = rig.server._shared.connections
            assert not connection.writable
            assert connection.unsent_bytes <= WRITE_HIGH_BYTES + 2 * len(BIG)
            assert len(rig.app.requests) < count
            loop = asyncio.get_running_loop()
            received = b""
            while len(rig.app.requests) < count or not received.endswith(BIG):
                received = received[-len(BIG) :]
                received += await asyncio.wait_for(loop.sock_recv(client, 1 << 20), DEADLINE_S)

    serve(scenario)


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"HTTP/1.1\r\nHost: a\r\nConnection: close", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: x, Close", True),
        (b"HTTP/1.0", True),
        (b"HTTP/1.0\r\nConnection: keep-alive", False),
        (b"HTTP/1.0\r\nProxy-Connection: keep-alive", False),
        (b"HTTP/1.1\r\nHost: a", False),
    ],
)
def test_keep_alive(head: bytes, closes: bool) -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"GET /echo " + head + b"\r\n\r\n")
        answer, _ = await read_answer(reader)
        assert (b"\r\nconnection: close\r\n" in answer) == closes
        assert (b"\r\nconnection: keep-alive\r\n" in answer) == (not closes and b"1.0" in head)
        assert rig.app.requests[0].http10 == (b"HTTP/1.0" in head)
        if closes:
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        else:
            writer.write(HELLO)
            assert (await read_answer(reader))[1] == b"GET  "

    serve(scenario)


@pytest.mark.parametrize("path", [b"/refused", b"/busy", b"/head-crash"])
def test_an_early_refusal_does_not_wait_for_the_body(path: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n" % path)
        head, body = await read_answer(reader)
        kind = KINDS[json.loads(body)["error"]["kind"]]
        assert head.startswith(b"HTTP/1.1 %d " % kind.status)
        assert b"\r\nconnection: close\r\n" in head
        assert (b"\r\nx-why: busy\r\nretry-after: 3\r\n" in head) == (path == b"/busy")
        # What the client is still sending is thrown away: a reset could cost it the answer.
        writer.write(b"z" * 4_000_000)
        await asyncio.wait_for(writer.drain(), DEADLINE_S)
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), DEADLINE_S)
        assert rig.app.requests == []
        assert rig.server.refused == {kind: 1}
        assert len(rig.crashes) == (path == b"/head-crash")

    serve(scenario)


def test_a_refusal_without_a_body_keeps_the_connection() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"GET /refused HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + HELLO)
        for _ in range(2):
            assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 404 ")
        assert (await read_answer(reader))[1] == b"GET  "

    serve(scenario)


@pytest.mark.parametrize(("path", "status"), [(b"/crash", 500), (b"/problem", 422)])
def test_an_application_that_raises(path: bytes, status: int) -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(post(path, b"abc") + HELLO)
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 %d " % status)
        assert (await read_answer(reader))[1] == b"GET  "
        assert len(rig.crashes) == (status == 500)
        assert rig.app.gone == []

    serve(scenario)


def test_continue_is_sent_only_for_an_accepted_body() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        whole = post(b"/echo", b"abc", b"Expect: 100-Continue")
        writer.write(whole[:-3])
        interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc" + post(b"/refused", b"abc", b"Expect: 100-continue")[:-3])
        assert (await read_answer(reader))[1] == b"POST  abc"
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 404 ")

    serve(scenario)


# ------------------------------------------------------------------------------- streams


async def streamed(rig: Rig, version: bytes = b"1.1", length: int = -1) -> Any:
    reader, writer = await rig.connect()
    writer.write(b"GET /hold HTTP/%b\r\nHost: a\r\n\r\n" % version)
    exchange = await rig.held(len(rig.app.requests) + 1)
    exchange.begin(200, b"content-type: text/event-stream\r\n", length)
    return reader, writer, exchange


def test_a_stream_is_chunked() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer, exchange = await streamed(rig)
        exchange.write(b"one")
        exchange.write(b"")
        exchange.write(memoryview(b"z" * 70_000))
        exchange.finish()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert b"\r\ntransfer-encoding: chunked\r\n" in head
        expected = b"3\r\none\r\n11170\r\n" + b"z" * 70_000 + b"\r\n0\r\n\r\n"
        assert await reader.readexactly(len(expected)) == expected
        writer.write(HELLO)
        assert (await read_answer(reader))[1] == b"GET  "

    serve(scenario)


def test_a_stream_to_http_1_0_ends_with_the_connection() -> None:
    async def scenario(rig: Rig) -> None:
        reader, _, exchange = await streamed(rig, b"1.0")
        exchange.write(b"one")
        exchange.finish()
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert answer.endswith(b"\r\nconnection: close\r\n\r\none")

    serve(scenario)


def test_a_stream_of_known_length() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer, exchange = await streamed(rig, length=6)
        exchange.write(b"one")
        exchange.write(b"two")
        exchange.finish()
        assert (await read_answer(reader))[1] == b"onetwo"
        writer.write(HELLO)
        assert (await read_answer(reader))[1] == b"GET  "

    serve(scenario)


@pytest.mark.parametrize(("version", "length"), [(b"1.0", -1), (b"1.1", 10**8), (b"1.1", -1)])
def test_of_a_piece_that_is_a_small_view_nothing_else_is_kept(version: bytes, length: int) -> None:
    async def scenario(rig: Rig) -> None:
        _, _, exchange = await streamed(rig, version, length)
        exchange.write(bytes(2 * 10**7))  # more than the client and the kernel take
        frame = bytearray(1_000_000)
        exchange.write(memoryview(frame)[:100])
        frame.clear()  # BufferError: somebody has a view of it

    serve(scenario)


@pytest.mark.parametrize(
    ("way", "version", "length"),
    [
        *[(way, b"1.1", 6) for way in ("abort", "fail", "short", "long")],
        *[(way, version, -1) for way in ("abort", "fail") for version in (b"1.0", b"1.1")],
    ],
)
def test_a_broken_answer_never_looks_complete(way: str, version: bytes, length: int) -> None:
    async def scenario(rig: Rig) -> None:
        reader, _, exchange = await streamed(rig, version, length)
        exchange.write(b"one")
        if way == "abort":
            exchange.abort()
        elif way == "fail":
            exchange.fail(ErrorKind.MODEL_FAILED)
        elif way == "short":
            exchange.finish()
        else:
            exchange.write(b"too much")
        assert exchange.ended
        exchange.write(b"more")
        exchange.finish()
        received = b""
        try:
            while piece := await asyncio.wait_for(reader.read(1000), DEADLINE_S):
                received += piece
            reset = False
        except ConnectionResetError:
            reset = True
        assert reset == (version == b"1.0")
        body = received.partition(b"\r\n\r\n")[2]
        if length >= 0:
            assert body == b"one"
        elif version == b"1.1":
            assert body == b"3\r\none\r\n"
        assert rig.app.gone == []
        assert rig.server.active == 0

    serve(scenario)


def test_writable_follows_the_client() -> None:
    async def scenario(rig: Rig) -> None:
        reader, _, exchange = await streamed(rig)
        assert exchange.writable
        written = 0
        while exchange.writable:
            exchange.write(b"w" * 10_000)
            written += 10_000
            await asyncio.sleep(0)
        assert rig.app.writable == []
        received = 0
        while not rig.app.writable:
            received += len(await asyncio.wait_for(reader.read(1 << 20), DEADLINE_S))
        assert rig.app.writable == [exchange]
        assert exchange.writable
        assert received <= written + 10_000

    serve(scenario)


def test_unread_is_what_the_client_s_side_has_not_taken() -> None:
    async def scenario(rig: Rig) -> None:
        reader, _, exchange = await streamed(rig)
        written = 0
        while exchange.writable:
            exchange.write(b"w" * 100_000)
            written += 100_000
            await asyncio.sleep(0)
        connection = exchange.connection
        assert written >= exchange.unread_bytes > connection.unsent_bytes
        while exchange.unread_bytes:
            await asyncio.wait_for(reader.read(1 << 20), DEADLINE_S)
        exchange.connection._transport.abort()
        await wait_until_async(lambda: not rig.server.connections)
        assert exchange.unread_bytes == 0

    serve(scenario)


# ------------------------------------------------------------------------------- departures


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
def test_a_departure_is_told_once(begun: bool, way: str) -> None:
    async def scenario(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(post(b"/hold", b"abc"))
        exchange = await rig.held()
        if begun:
            exchange.begin(200, b"")
        if way == "close":
            writer.close()
        elif way == "half-close":
            writer.write_eof()
        else:
            writer.transport.abort()
        await wait_until_async(lambda: rig.app.gone)
        exchange.respond(200, b"", b"late")
        exchange.begin(200, b"")
        exchange.write(b"late")
        exchange.finish()
        exchange.fail(ErrorKind.INTERNAL)
        exchange.abort()
        await wait_until_async(lambda: not rig.server.connections)
        assert rig.app.gone == [exchange]
        assert rig.server.active == 0

    serve(scenario)


def test_a_departure_in_the_middle_of_a_body_is_nobodys_business() -> None:
    async def scenario(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(post(b"/hold", b"abc")[:-1])
        await wait_until_async(lambda: rig.app.heads)
        writer.close()
        await wait_until_async(lambda: not rig.server.connections)
        assert rig.app.gone == []
        assert rig.app.requests == []

    serve(scenario)


def test_no_departure_is_told_after_the_end() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(HELLO)
        await read_answer(reader)
        writer.close()
        await wait_until_async(lambda: not rig.server.connections)
        assert rig.app.gone == []

    serve(scenario)


# ------------------------------------------------------------------------- limits on the whole


def test_connections_over_the_limit_are_told_so() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(HELLO)
        await read_answer(reader)
        answer = await rig.talk(HELLO)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer
        assert rig.server.refused == {ErrorKind.OVERLOADED: 1}
        for _ in range(OVERFLOW_CONNECTIONS + 20):
            await rig.connect()
        await wait_until_async(
            lambda: rig.server.refused[ErrorKind.OVERLOADED] >= OVERFLOW_CONNECTIONS
        )
        assert rig.server.connections <= 1 + OVERFLOW_CONNECTIONS
        writer.write(HELLO)
        assert (await read_answer(reader))[1] == b"GET  "

    serve(scenario, connections=1)


def test_bodies_together_are_bounded() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(post(b"/hold", b"a" * 600))
        exchange = await rig.held()
        assert rig.server.buffered_bytes == 600
        exchange.release_body()
        assert exchange.body == b""
        assert rig.server.buffered_bytes == 600
        for late in (post(b"/hold", b"b" * 600), chunked(b"258\r\n" + b"b" * 600)):
            answer = await rig.talk(late)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"kind":"memory"' in answer
            assert b"\r\nretry-after: 1\r\n" in answer
        await wait_until_async(lambda: rig.server.buffered_bytes == 600)
        exchange.respond(200, b"", b"")
        await read_answer(reader)
        assert rig.server.buffered_bytes == 0

    serve(scenario, buffered_bytes=1000)


def test_a_large_body_arrives_whole_and_a_large_answer_leaves_whole() -> None:
    async def scenario(rig: Rig) -> None:
        body = bytes(range(256)) * 40_000
        reader, writer = await rig.connect()
        writer.write(post(b"/hold", body))
        exchange = await rig.held()
        assert exchange.body == body
        exchange.respond(200, b"", memoryview(body))
        assert (await read_answer(reader))[1] == body

    serve(scenario)


# ------------------------------------------------------------------------------- deadlines


async def swept(rig: Rig, partial: bytes, wait_for: Callable[[], object], after_s: float) -> bytes:
    """Send ``partial``, let ``after_s`` seconds pass on the sweep's clock, read to the end."""
    reader, writer = await rig.connect()
    writer.write(partial)
    await wait_until_async(wait_for)
    now = 1e9  # beyond any deadline that the server's own timer has set
    rig.server._timer.cancel()  # type: ignore[union-attr]
    for connection in rig.server._shared.connections:
        connection._deadline = 0.0
        if connection._exchange is not None:
            connection._exchange.arrived_at = now
    rig.server.sweep(now)
    rig.server.sweep(now + after_s - 0.1)
    assert not reader.at_eof()
    assert rig.server.refused == {}
    assert rig.server.connections == 1
    rig.server.sweep(now + after_s)
    rig.server.sweep(now + after_s + LINGER_S + 1)
    rig.server.sweep(now + after_s + 2 * LINGER_S + 2)
    return await asyncio.wait_for(reader.read(), DEADLINE_S)


@pytest.mark.parametrize(
    ("partial", "state", "after_s", "answer"),
    [
        (b"", 0, 30.0, rb""),
        (HELLO + b"\r\n", 0, 30.0, rb"HTTP/1.1 200 [^\0]*GET  "),
        (HELLO[:-1], 1, 10.0, rb"HTTP/1.1 408 [^\0]*\r\nconnection: close\r\n[^\0]*"),
        (post(b"/echo", b"abc")[:-1], 2, 20.0, rb"HTTP/1.1 408 [^\0]*"),
        (chunked(b"3\r\nab"), 2, 20.0, rb"HTTP/1.1 408 [^\0]*"),
    ],
)
def test_slow_clients(partial: bytes, state: int, after_s: float, answer: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        def reached() -> bool:
            states = [connection._state for connection in rig.server._shared.connections]
            return states == [state] and len(rig.app.requests) == partial.count(HELLO)

        assert re.fullmatch(answer, await swept(rig, partial, reached, after_s))

    serve(scenario, keepalive_s=30.0, header_timeout_s=10.0, body_timeout_s=20.0)


def test_a_body_of_a_byte_now_and_then_is_refused() -> None:
    """Each piece is in time; the whole is not."""

    async def scenario(rig: Rig) -> None:
        rig.server._timer.cancel()  # type: ignore[union-attr]
        reader, writer = await rig.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        shared = rig.server._shared
        await wait_until_async(lambda: shared.active == 1)
        (connection,) = shared.connections
        assert connection._exchange is not None
        now, sent = connection._exchange.arrived_at, 0
        while not rig.server.refused:
            assert now < connection._exchange.arrived_at + 22.0
            writer.write(b"x")
            sent += 1
            await wait_until_async(lambda sent=sent: connection._framer.body_bytes == sent)
            now += 1.0
            rig.server.sweep(now)
        assert rig.server.refused == {ErrorKind.TIMEOUT_READING: 1}
        assert sent >= 20
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 408 ")

    serve(scenario, body_timeout_s=20.0)


def test_a_client_that_leaves_behind_unread_requests_is_noticed() -> None:
    async def scenario(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        exchange = await rig.held()
        writer.write(HELLO * (4 * HOLD_BYTES // len(HELLO)))
        (connection,) = rig.server._shared.connections
        await wait_until_async(lambda: connection._reading_paused)
        writer.transport.abort()
        rig.server.sweep(exchange.arrived_at + PIPELINE_S + 0.1)
        await wait_until_async(lambda: rig.app.gone == [exchange])

    serve(scenario)


def test_an_answer_may_take_its_time() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await rig.connect()
        await wait_until_async(lambda: rig.server.connections == 1)
        rig.server.sweep(time.monotonic())  # sets the deadline of an idle connection
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        exchange = await rig.held()
        for now in (1e9, 2e9, 3e9):
            rig.server.sweep(now)
            await asyncio.sleep(0)
        exchange.respond(200, b"", b"at last")
        assert (await read_answer(reader))[1] == b"at last"

    serve(scenario)


def read_all(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_client_that_reads_nothing_is_cut(version: bytes, finished: bool) -> None:
    async def scenario(rig: Rig) -> None:
        rig.server._timer.cancel()  # type: ignore[union-attr]
        with socket.create_connection(("127.0.0.1", rig.port)) as client:
            client.sendall(b"GET /hold HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
            exchange = await rig.held()
            exchange.begin(200, b"")
            exchange.write(b"x" * 20_000_000)
            if finished:
                exchange.finish()
            await wait_until_async(lambda: not exchange.writable)
            (connection,) = rig.server._shared.connections
            settled = -1
            while settled != connection.unsent_bytes:  # the kernel's buffers fill for a while
                settled = connection.unsent_bytes
                await asyncio.sleep(0.05)
            rig.server.sweep(1e9)
            rig.server.sweep(1e9 + 119)
            await asyncio.sleep(0)
            assert rig.app.gone == []
            assert rig.server.connections == 1
            rig.server.sweep(1e9 + 120)
            await wait_until_async(lambda: not rig.server.connections)
            assert rig.app.gone == ([] if finished else [exchange])
            with pytest.raises(ConnectionResetError):
                read_all(client)

    serve(scenario)


# ------------------------------------------------------------------------------- the end


def test_drain() -> None:
    async def scenario(rig: Rig) -> None:
        new_reader, _ = await rig.connect()
        idle_reader, idle_writer = await rig.connect()
        idle_writer.write(HELLO)
        await idle_reader.readuntil(b"GET  ")  # the whole answer
        rig.app.requests.clear()
        reader, writer = await rig.connect()
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" + HELLO)
        exchange = await rig.held()
        half_reader, half_writer = await rig.connect()
        half_writer.write(HELLO[:-1])
        await wait_until_async(
            lambda: any(one._state == 1 for one in rig.server._shared.connections)
        )
        draining = asyncio.ensure_future(rig.server.drain(DEADLINE_S))
        assert await asyncio.wait_for(idle_reader.read(), DEADLINE_S) == b""
        assert b'"kind":"draining"' in await asyncio.wait_for(new_reader.read(), DEADLINE_S)
        with pytest.raises(OSError, match="refused"):
            await rig.connect()
        half_writer.write(HELLO[-1:])
        answer = await asyncio.wait_for(half_reader.read(), DEADLINE_S)
        assert b'"kind":"draining"' in answer
        assert not draining.done()
        exchange.respond(200, b"", b"finished")
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert b"\r\nconnection: close\r\n\r\nfinished" in answer
        assert await asyncio.wait_for(draining, DEADLINE_S)
        assert rig.server.idle

    serve(scenario)


def test_who_has_asked_before_the_drain_is_answered() -> None:
    async def scenario(rig: Rig) -> None:
        def connect() -> socket.socket:
            client = socket.create_connection(("127.0.0.1", rig.port), DEADLINE_S)
            return undo.enter_context(client)

        def whole(client: socket.socket) -> bytes:
            return b"".join(iter(lambda: client.recv(65536), b""))

        with ExitStack() as undo:
            kept = connect()
            kept.sendall(HELLO)
            await rig.held()
            assert await asyncio.to_thread(kept.recv, 65536)
            # all of this without a turn of the loop: the server has seen none of it
            clients = [kept, *(connect() for _ in range(20))]
            for client in clients:
                client.sendall(HELLO)
            assert await rig.server.drain(DEADLINE_S)
            for client in clients:
                assert b'"kind":"draining"' in await asyncio.to_thread(whole, client)
        with pytest.raises(OSError, match="refused"):
            await rig.connect()

    serve(scenario)


def test_a_port_that_is_about_to_close_hears_no_new_client_and_keeps_those_it_has_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard = socket.create_connection(listener.getsockname(), DEADLINE_S)
        deafen(listener)
        with heard, pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), 0.3)
        accepted, _ = listener.accept()
        accepted.close()


def test_drain_gives_up_at_its_deadline() -> None:
    async def scenario(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        exchange = await rig.held()
        reader, halfway = await rig.connect()
        halfway.write(post(b"/hold", b"abc")[:-1])
        await wait_until_async(lambda: rig.server.active == 2)
        assert not await rig.server.drain(0.05)
        assert b'"kind":"draining"' in await asyncio.wait_for(reader.read(), DEADLINE_S)
        rig.server.close()
        await wait_until_async(lambda: rig.app.gone == [exchange])

    serve(scenario)


@pytest.mark.parametrize("secure", [False, True])
def test_running_out_of_file_descriptors(secure: bool, tmp_path: Path) -> None:
    """Accepting goes on when descriptors come back, and does not spin while there are none."""
    program = """
        import asyncio, resource, socket, ssl, sys, time
        import uvloop
        from ingress.http import Server
        from supervisor.tls import make_context
        from supervisor.settings import LimitSettings
        from tests.kit.wait import wait_until_async
        from tests.unit.test_http_server import App, HELLO

        async def ask(port):
            trust = ssl._create_unverified_context() if pair else None
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            writer.write(HELLO)
            answer = await asyncio.wait_for(reader.read(1000), 30)
            writer.close()
            return answer

        async def main():
            server = Server(App(), LimitSettings(), asyncio.get_running_loop())
            port = await server.listen("127.0.0.1", 0, make_context(*pair) if pair else None)
            if pair:
                await ask(port)  # loads what it loads
            await wait_until_async(lambda: not server.connections)
            probe = socket.socket()
            free = probe.fileno()
            probe.close()
            # Every client takes two descriptors: one here, one for the server's end.
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 21, free + 21))
            clients = []
            try:
                while True:
                    clients.append(socket.create_connection(("127.0.0.1", port)))
                    await asyncio.sleep(0)
            except OSError:
                pass
            clients.pop().close()
            late = socket.create_connection(("127.0.0.1", port))
            before = time.process_time()
            await asyncio.sleep(1)
            assert time.process_time() - before < 0.5, "it spins"
            late.close()
            for client in clients:
                client.close()
            await wait_until_async(lambda: not server.connections)
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
            server.close()

        uvloop.run(main())
    """
    pair = [str(path) for path in make_pair(tmp_path, "few.test")] if secure else []
    text = f"pair = {pair!r}\n" + textwrap.dedent(program)
    subprocess.run([sys.executable, "-c", text], check=True, timeout=2 * DEADLINE_S)


def test_the_limit_on_connections_leaves_descriptors_free() -> None:
    async def scenario(rig: Rig) -> None:
        fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert rig.server._shared.max_connections < max(fds, 10**9 + 1)
        if fds != resource.RLIM_INFINITY:
            assert rig.server._shared.max_connections <= fds

    serve(scenario, connections=10**9)
