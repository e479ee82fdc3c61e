"""The client of the model server against a server whose every byte is scripted."""

from __future__ import annotations

import asyncio
import http.server
import itertools
import math
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from backend_adapter import known_heads
from backend_adapter.file_body import PIECE_BYTES, PIECES_A_TURN
from backend_adapter.known_heads import KnownHeads
from backend_adapter.messages import FilePart
from backend_adapter.model_client import ModelClient, ProbeResult, parse_url
from backend_adapter.model_connection import HEAD_LIMIT_BYTES, Connection
from backend_adapter.model_request import Request, Sink
from backend_adapter.response_headers import ResponseHead, read_head
from supervisor import memory_budget
from tests.kit.raw_server import Peer, RawServer, Script

DEADLINE_S = 20.0


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


# ------------------------------------------------------------------------ requests and reuse


def test_request_as_written_and_connection_reused() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        for number in range(5):
            sink = await fetch(client, body=b"%d" % number)
            assert sink.outcome == ("end",)
            assert sink.body == b"%d" % number
            assert sink.pieces == 1
        assert server.accepted == client.opened == 1
        assert client.reused == 4
        assert client.idle == 1
        head, body = server.requests[0]
        assert body == b"0"
        assert head == (
            b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-length: 1\r\n"
            b"content-type: application/json\r\n\r\n" % server.port
        )
        assert abs(client.progress_at - time.monotonic()) < DEADLINE_S

    exchange(serve_all, check)


class Hesitant(http.server.BaseHTTPRequestHandler):
    """Writes head and body one after the other, and leaves Nagle's algorithm on."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def test_a_server_that_waits_for_our_word_gets_it() -> None:
    """Or each answer on a kept connection would take 40 ms longer."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hesitant)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def main() -> None:
        async with client_of(f"http://127.0.0.1:{server.server_address[1]}") as client:
            took_s = []
            for _ in range(12):
                began = time.perf_counter()
                assert (await fetch(client)).body == b"ok"
                took_s.append(time.perf_counter() - began)
            assert client.opened == 1
            assert min(took_s[4:]) < 0.02, took_s

    try:
        run(main())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_prefix_of_the_base_url() -> None:
    async def main() -> None:
        async with RawServer(serve_all) as server, client_of(server.url + "/base/") as client:
            await fetch(client, path="/a?b=c")
            assert server.requests[0][0].startswith(b"POST /base/a?b=c HTTP/1.1\r\n")

    run(main())


def test_next_request_from_inside_the_end_reuses_the_connection() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        first, second = Recorder(), Recorder()
        first.then = lambda: client.send(request(second, body=b"second"))
        client.send(request(first))
        await asyncio.wait_for(second.ended.wait(), DEADLINE_S)
        assert (second.outcome, second.body) == (("end",), b"second")
        assert server.accepted == 1

    exchange(serve_all, check)


def test_parallel_requests_get_their_own_connections_and_max_idle_holds() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sinks = [Recorder() for _ in range(20)]
        for number, sink in enumerate(sinks):
            client.send(request(sink, body=b"%d" % number))
        assert client.in_flight == 20
        await until(lambda: all(sink.end for sink in sinks))
        assert [sink.body for sink in sinks] == [b"%d" % number for number in range(20)]
        assert client.idle == 3
        await until(lambda: server.open == 3)

    exchange(serve_all, check, max_idle=3)


@pytest.mark.parametrize("wrap", [bytes, memoryview])
@pytest.mark.parametrize("size", [0, 65_536, 65_537, 5_000_000])
def test_bodies_of_any_size(size: int, wrap: type[bytes] | type[memoryview]) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    async def check(client: ModelClient, server: RawServer) -> None:
        for _ in range(2):
            sink = await fetch(client, body=wrap(body))
            assert sink.body == body
        assert server.accepted == 1

    exchange(serve_all, check)


@pytest.mark.parametrize(
    "how",
    [
        {"path": "x"},
        {"path": "/a b"},
        {"path": "/a\r\nx: y"},
        {"path": "/ä"},
        {"method": "GET / HTTP/1.1\r\n"},
        {"headers": b"a: b"},
        {"headers": b"a: b\r\n\r\n"},
        {"headers": b"\r\n"},
    ],
)
def test_request_that_cannot_be_written_is_refused_at_once(how: dict[str, Any]) -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sink = Recorder()
        with pytest.raises(ValueError, match=r"must|word"):
            client.send(request(sink, **how))
        assert client.in_flight == 0

    exchange(serve_all, check)


def test_remembered_request_lines_are_bounded() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        for number in range(1100):
            sink = Recorder()
            wanted = request(sink, path=f"/{number}")
            client.send(wanted)
            client.cancel(wanted)
        assert len(client._heads) <= 1024
        assert (await fetch(client)).outcome == ("end",)

    exchange(serve_all, check)


def test_that_must_not_be_repeated_takes_a_new_connection() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        await fetch(client)
        await fetch(client, redeliver=False)
        assert server.accepted == 2
        assert client.reused == 0

    exchange(serve_all, check)


# ----------------------------------------------------------------- what breaks before the head


def closing_after(answered: int) -> Script:
    """The first connection answers so many requests, and closes on the next, unread."""

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await serve_all(peer)
        for _ in range(answered):
            await peer.request()
            await peer.answer()
        await peer.reader.readexactly(1)

    return script


def test_a_kept_connection_that_turns_out_to_be_closed_is_told() -> None:
    """A server that is being killed ends those first, and its listener last: whoever asks it again
    at once has asked in vain twice."""

    async def check(client: ModelClient, server: RawServer) -> None:
        await fetch(client)
        sink = await fetch(client, body=b"again")
        assert sink.outcome == ("lost", 1)  # it may have arrived
        assert (server.accepted, client.opened, client.reused) == (1, 1, 1)

    exchange(closing_after(1), check)


def test_bytes_too_many_of_one_exchange_are_not_the_next_ones_answer() -> None:
    """They may come late, when the connection has its next request already."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        if server.accepted == 1:
            await peer.request()
            await peer.send(b"too much of it")
        else:
            await peer.request()
            await peer.answer(b"late")

    async def check(client: ModelClient, raw: RawServer) -> None:
        nonlocal server
        server = raw
        await fetch(client)
        sink = await fetch(client, body=b"again")
        assert (sink.outcome, sink.body) == (("end",), b"ok")
        assert raw.accepted == 2

    server: Any = None
    exchange(script, check)


def test_new_connection_closed_before_the_head_is_told() -> None:
    for script in (responding(), closing_after(0)):
        assert outcome_of(script).outcome == ("lost", True)


def test_new_connection_reset_before_the_head_is_told() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    assert outcome_of(script).outcome == ("lost", True)


def test_nobody_listens() -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with client_of(f"http://127.0.0.1:{unused.getsockname()[1]}") as client:
                sink = await fetch(client)
                assert sink.outcome == ("lost", False)
                assert "127.0.0.1" in str(sink.end)

    run(main())


def test_idle_connection_closed_by_the_server_is_dropped() -> None:
    leave = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        await leave.wait()

    async def check(client: ModelClient, server: RawServer) -> None:
        await fetch(client)
        assert client.idle == 1
        leave.set()
        await until(lambda: client.idle == 0)

    exchange(script, check)


@pytest.mark.parametrize("late", [False, True])
def test_bytes_that_nobody_asked_for_close_the_connection(late: bool) -> None:
    go = asyncio.Event()
    response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await serve_all(peer)
        await peer.request()
        await peer.send(response + b"ok" + (b"" if late else response + b"no"))
        await go.wait()
        await peer.send(response + b"no")
        await peer.hold()

    async def check(client: ModelClient, server: RawServer) -> None:
        sink = await fetch(client)
        assert (sink.outcome, sink.body) == (("end",), b"ok")
        go.set()
        await until(lambda: client.idle == 0)
        assert (await fetch(client, body=b"own")).body == b"own"

    exchange(script, check)


# ------------------------------------------------------------------------ responses and framing

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def test_chunked() -> None:
    sink = outcome_of(responding(CHUNKED + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 1\r\n\r\n"))
    assert (sink.outcome, sink.body, sink.pieces) == (("end",), b"abcde", 1)
    assert sink.head.streaming
    assert sink.head.content_length == -1
    assert sink.head.headers == b""


@pytest.mark.parametrize("rest", [b"3\r\nab", b"3\r\nabc\r\n", b"3\r\nabc\r\n0\r\n"])
def test_chunked_cut_short(rest: bytes) -> None:
    sink = outcome_of(responding(CHUNKED + rest))
    assert sink.outcome == ("broken", "model_failed")
    assert b"abc".startswith(sink.body)


def test_content_length_cut_short() -> None:
    sink = outcome_of(responding(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"))
    assert (sink.outcome, sink.body) == (("broken", "model_failed"), b"abc")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_body_until_the_connection_closes(version: bytes) -> None:
    sink = outcome_of(responding(b"HTTP/%b 200 OK\r\na: b\r\n\r\nabc" % version, b"def"))
    assert (sink.outcome, sink.body) == (("end",), b"abcdef")
    assert sink.head.content_length == -1
    assert not sink.head.streaming


def test_body_until_the_connection_closes_but_it_was_reset() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await gate.wait()
        peer.reset()

    gate = asyncio.Event()

    async def check(client: ModelClient, server: RawServer) -> None:
        sink = Recorder()
        sink.on_piece = gate.set
        client.send(request(sink))
        await asyncio.wait_for(sink.ended.wait(), DEADLINE_S)
        assert sink.outcome == ("broken", "model_failed")

    exchange(script, check)


def test_interim_responses_are_skipped() -> None:
    sink = outcome_of(
        responding(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n",
            b"HTTP/1.1 201 Made\r\ncontent-length: 1\r\n\r\na",
        )
    )
    assert (sink.outcome, sink.body, sink.head.status) == (("end",), b"a", 201)
    assert sink.head.headers == b""


def test_closed_after_an_interim_response_only() -> None:
    sink = outcome_of(responding(b"HTTP/1.1 100 Continue\r\n\r\n"))
    assert sink.outcome == ("lost", True)


@pytest.mark.parametrize(
    ("method", "status", "headers", "kept"),
    [
        ("HEAD", 200, b"content-length: 9\r\n", False),
        ("HEAD", 200, b"transfer-encoding: chunked\r\n", False),
        ("HEAD", 200, b"", False),
        ("POST", 204, b"", True),
        ("POST", 204, b"content-length: 0\r\n", True),
        ("POST", 204, b"content-length: 9\r\n", False),
        ("POST", 204, b"transfer-encoding: chunked\r\n", False),
        ("POST", 304, b"transfer-encoding: chunked\r\n", False),
        ("POST", 304, b"content-length: 9\r\n", True),
    ],
)
def test_responses_without_a_body(method: str, status: int, headers: bytes, kept: bool) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, headers))

    async def check(client: ModelClient, server: RawServer) -> None:
        for _ in range(2):
            sink = await fetch(client, method=method, body=b"")
            assert (sink.outcome, sink.body) == (("end",), b"")
            assert (sink.head.status, sink.head.content_length) == (status, 0)
        assert server.accepted == (1 if kept else 2)

    exchange(script, check)


def test_connection_close_is_honoured() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(headers=b"connection: close\r\n")
        await peer.hold()

    async def check(client: ModelClient, server: RawServer) -> None:
        for _ in range(2):
            assert (await fetch(client)).outcome == ("end",)
            assert client.idle == 0
        assert server.accepted == 2

    exchange(script, check)


@pytest.mark.parametrize("head_bytes", [10, 10**6])  # more than a socket file takes
def test_of_a_body_in_a_file_two_pieces_are_held_at_most(tmp_path: Path, head_bytes: int) -> None:
    size = 2 * PIECES_A_TURN * PIECE_BYTES
    with open(tmp_path / "body", "wb") as body:
        body.truncate(size)
    head = b"x-large: " + b"x" * head_bytes + b"\r\n"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "model"))
            listener.listen()  # and never reads
            async with client_of(f"unix://{tmp_path}/model") as client:
                part = FilePart(str(tmp_path / "body"), 0, size)
                sent = Request("POST", "/", head, part, Recorder())
                client.send(sent)
                await until(lambda: sent.connection is not None)
                for _ in range(20):  # turns of the loop, in each of which more could be sent
                    await asyncio.sleep(0)
                held = sent.connection._open_transport().get_write_buffer_size()
                assert (
                    0 < held <= len(head) + memory_budget.PIECE_BYTES + memory_budget.PATIENCE_BYTES
                )
                client.cancel(sent)

    run(main())


def test_answer_before_the_body_was_read_closes_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await peer.answer(b"too large", status=413)
        await gone.wait()

    gone = asyncio.Event()

    async def check(client: ModelClient, server: RawServer) -> None:
        sink = await fetch(client, body=bytes(64 * 2**20))
        assert (sink.outcome, sink.head.status) == (("end",), 413)
        assert client.idle == 0
        gone.set()

    exchange(script, check)


@contextmanager
def answering_unread(answer: bytes, times: int, linger: bytes) -> Iterator[str]:
    """URL of a server that reads a little of so many requests, more each time, answers, and closes:
    what it has not read makes that a reset, whatever ``linger`` says.
    """

    def serve() -> None:
        for number in range(times):
            client, _ = listener.accept()
            with client:
                assert client.recv(1 + 1000 * number)
                client.sendall(answer)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        server = threading.Thread(target=serve)
        server.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


CUT_OFF = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nthe first half"
REFUSAL = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 4\r\n\r\nno, "


def test_what_was_cut_off_by_a_reset_is_no_whole_answer(tmp_path: Path) -> None:
    """Its end would be the connection's, and that did not end in order: it can not be told from
    what lies in the kernel, so nothing of it counts."""
    path = tmp_path / "body"
    path.write_bytes(bytes(4 * 2**20))

    async def main(url: str) -> None:
        async with client_of(url) as client:
            for _ in range(40):
                sink = await fetch(client, body=FilePart(str(path), 0, 4 * 2**20))
                assert sink.outcome[0] in ("lost", "broken")

    with answering_unread(CUT_OFF, 40, struct.pack("ii", 1, 0)) as url:
        run(main(url))


@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_answer_counts_though_the_rest_of_the_body_met_a_reset(
    where: str, tmp_path: Path
) -> None:
    """What the server said lies in the kernel, but the sending may find out first."""
    body = bytes(4 * 2**20)
    path = tmp_path / "body"
    path.write_bytes(body)

    async def main(url: str) -> None:
        async with client_of(url) as client:
            for _ in range(60):
                part = FilePart(str(path), 0, len(body)) if where == "file" else body
                sink = await fetch(client, body=part)
                assert (sink.outcome, sink.head.status, sink.body) == (("end",), 413, b"no, ")
                assert client.idle == 0

    with answering_unread(REFUSAL, 60, struct.pack("ii", 0, 0)) as url:
        run(main(url))


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\na",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\na",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + bytes([97]) * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
        b"HTTP/1.1 200 " + bytes([97]) * 70_000,
    ],
)
def test_malformed_heads(response: bytes) -> None:
    sink = outcome_of(responding(response, close=False))
    assert sink.outcome == ("broken", "model_failed")
    assert not sink.heads


@pytest.mark.parametrize("rest", [b"zz\r\n", b"1;" + b"x" * 2**20, b"0\r\nx: " + b"y" * 2**20])
def test_malformed_chunks(rest: bytes) -> None:
    sink = outcome_of(responding(CHUNKED + b"1\r\na\r\n", rest, close=False))
    assert (sink.outcome, sink.body) == (("broken", "model_failed"), b"a")


def test_cut_short_within_the_head() -> None:
    assert outcome_of(responding(b"HTTP/1.1 200 O")).outcome == ("broken", "model_failed")


def test_the_largest_head_passes() -> None:
    value = b"v" * (HEAD_LIMIT_BYTES - 200)
    sink = outcome_of(
        responding(b"HTTP/1.1 200 OK\r\nx: %b\r\ncontent-length: 0\r\n\r\n" % value, close=False)
    )
    assert sink.head.headers == b"x: %b\r\n" % value


SAMPLES = [
    b"HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\n"
    + CHUNKED
    + b"5\r\nhello\r\n6;e\r\n world\r\n0\r\nt: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\ndata: 2\n\n",
    b"HTTP/1.1 204 None\r\nx: y\r\n\r\n",
    CHUNKED + b"5\r\nhello\r\n6\r\n wo",
    CHUNKED + b"5\r\nhello\r\nnonsense",
    b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nshort",
    b"HTTP/1.1 200 OK\r\nhalf a he",
]


class Wire(asyncio.Transport):
    """A transport without a socket: the test itself decides what each read brings."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


class Pool:
    """The owner of one connection that starts its first request as soon as it stands."""

    progress_at = 0.0
    reusable = False

    def __init__(self, known: KnownHeads | None) -> None:
        self.known_heads = KnownHeads() if known is None else known

    def connected(self, connection: Connection, request: Request) -> None:
        connection.start(request)

    def freed(self, connection: Connection, reusable: bool) -> None:
        self.reusable = reusable

    def closed(self, connection: Connection) -> None:
        pass

    def resend(self, request: Request) -> None:
        raise AssertionError("the connection is a new one")


def read_in_pieces(
    pieces: list[bytes], known: KnownHeads | None = None, method: str = "POST"
) -> tuple[object, ...]:
    """What is told of a response that is read like this, and then the connection ends."""
    loop = asyncio.new_event_loop()
    try:
        sink, wire, pool = Recorder(), Wire(), Pool(known)
        connection = Connection(pool, loop, request(sink, method), counted=True)
        connection.connection_made(wire)
        for piece in pieces:
            if not wire.closed:
                connection.data_received(piece)
        connection.eof_received()
        connection.connection_lost(None)
        head = sink.heads[0] if sink.heads else None
        return head, sink.body, sink.outcome, pool.reusable
    finally:
        loop.close()


@pytest.mark.parametrize("response", SAMPLES)
def test_byte_by_byte_the_answer_is_the_same(response: bytes) -> None:
    assert read_in_pieces([bytes([byte]) for byte in response]) == read_in_pieces([response])


@pytest.mark.parametrize("response", SAMPLES)
@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_known_head_changes_nothing(method: str, response: bytes) -> None:
    known = KnownHeads()
    anew = read_in_pieces([response], known, method)
    assert read_in_pieces([response], known, method) == anew
    assert read_in_pieces([response + b"HTTP/1.1 200 OK"], known, method) == read_in_pieces(
        [response + b"HTTP/1.1 200 OK"], method=method
    )
    assert read_in_pieces([response[:-1]], known, method) == read_in_pieces(
        [response[:-1]], method=method
    )


def test_known_heads_are_bounded() -> None:
    known = KnownHeads()
    for number in range(10 * known_heads.MAX_HEADS):
        head = b"HTTP/1.1 200 OK\r\nx: %d\r\ncontent-length: 2\r\n\r\n" % number
        read_in_pieces([head + b"ok"], known)
        assert known.split(head + b"no") is not None
        assert len(known._heads) <= known_heads.MAX_HEADS
    large = b"HTTP/1.1 200 OK\r\nx: %b\r\ncontent-length: 2\r\n\r\nok" % (b"y" * 2000)
    read_in_pieces([large], known)
    assert known.split(large) is None


@given(st.sampled_from(SAMPLES), st.sets(st.integers(1, 120), max_size=6))
def test_however_it_is_cut_the_answer_is_the_same(response: bytes, cuts: set[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(response)), len(response)]
    pieces = [response[a:b] for a, b in itertools.pairwise(edges)]
    assert read_in_pieces(pieces) == read_in_pieces([response])


LARGE = 300_000
_LARGE_HEAD = b"HTTP/1.%d 200 OK\r\n%bcontent-length: %d\r\n\r\n"
LARGE_SAMPLES = [
    _LARGE_HEAD % (1, b"", LARGE) + b"x" * LARGE,
    _LARGE_HEAD % (1, b"connection: close\r\n", LARGE) + b"x" * LARGE,
    _LARGE_HEAD % (0, b"", LARGE) + b"x" * LARGE,
    _LARGE_HEAD % (1, b"", LARGE) + b"x" * (LARGE - 1),  # cut short
    _LARGE_HEAD % (1, b"", LARGE) + b"x" * LARGE + b"HTTP/1.1 200 OK\r\n",  # more than it
    # llhttp takes a body of this one; it is none of the answer's
    b"HTTP/1.1 110 X\r\ncontent-length: 6\r\n\r\nstolen"
    + _LARGE_HEAD % (1, b"", LARGE)
    + b"x" * LARGE,
]


@given(st.sampled_from(LARGE_SAMPLES), st.sets(st.integers(1, LARGE + 100), max_size=6))
@example(LARGE_SAMPLES[0], {100, LARGE})
@example(LARGE_SAMPLES[4], {100, LARGE})
@example(LARGE_SAMPLES[5], {140})
def test_the_rest_of_a_large_body_is_the_same_without_the_parser(
    response: bytes, cuts: set[int]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(response)), len(response)]
    pieces = [response[a:b] for a, b in itertools.pairwise(edges)]
    told = read_in_pieces(pieces)
    assert told == read_in_pieces([response])
    assert told[1] == b"x" * (LARGE - (response is LARGE_SAMPLES[3]))


def test_after_a_large_body_the_next_response_is_read() -> None:
    loop = asyncio.new_event_loop()
    first, second, pool = Recorder(), Recorder(), Pool(None)
    connection = Connection(pool, loop, request(first), counted=True)
    connection.connection_made(Wire())
    for at in range(0, len(LARGE_SAMPLES[0]), 90_000):
        connection.data_received(LARGE_SAMPLES[0][at : at + 90_000])
    assert (first.outcome, len(first.body), pool.reusable) == (("end",), LARGE, True)
    connection.start(request(second))
    connection.data_received(b"HTTP/1.1 201 X\r\ncontent-le")
    connection.data_received(b"ngth: 2\r\n\r\nok")
    assert (second.outcome, second.body, second.head.status) == (("end",), b"ok", 201)
    loop.close()


@given(st.lists(st.sampled_from([*SAMPLES, b"\r\n", b"HTTP/1.1 ", b"0\r\n\r\n"]), max_size=4))
def test_whatever_comes_there_is_one_end(pieces: list[bytes]) -> None:
    """The recorder itself fails on a second end, and on anything that follows the end."""
    assert read_in_pieces(pieces)[2]


# ------------------------------------------------------------------- cancel, pause, deadlines


def test_cancel_closes_the_connection_and_nothing_is_heard() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sink = Recorder()
        wanted = request(sink)
        client.send(wanted)
        await until(lambda: server.requests)
        client.cancel(wanted)
        client.cancel(wanted)
        assert client.in_flight == 0
        await until(lambda: server.open == 0)
        assert sink.end is None
        assert not sink.heads

    exchange(responding(close=False), check)


def test_cancel_while_connecting() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sink = Recorder()
        wanted = request(sink)
        client.send(wanted)
        client.cancel(wanted)
        assert client.in_flight == 0
        assert (await fetch(client, body=b"other")).body == b"other"
        assert sink.end is None
        assert [body for _, body in server.requests] == [b"other"]

    exchange(serve_all, check)


def test_cancel_from_inside_a_callback() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sink = Recorder()
        wanted = request(sink)
        sink.on_piece = lambda: client.cancel(wanted)
        client.send(wanted)
        await until(lambda: sink.pieces)
        await until(lambda: server.open == 0)
        assert sink.end is None
        assert client.idle == client.in_flight == 0

    exchange(responding(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", close=False), check)


def test_pause_stops_the_model_server_and_resume_lets_it_go_on() -> None:
    total = 64 * 2**20
    sent = [0]

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await serve_all(peer)
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        piece = bytes(65_536)
        while sent[0] < total:
            await peer.send(piece)
            sent[0] += len(piece)
        await serve_all(peer)

    async def check(client: ModelClient, server: RawServer) -> None:
        sink = Recorder()
        wanted = request(sink)
        received = [0]

        def count() -> None:
            received[0] += len(sink.body)
            sink.body = b""
            client.pause(wanted)
            client.pause(wanted)

        sink.on_piece = count
        client.send(wanted)
        await until(lambda: received[0])
        before = received[0]
        for _ in range(200):  # plenty of turns of the loop for bytes that should not come
            assert (await fetch(client)).outcome == ("end",)
        # Idle for far longer than allowed, as far as the clock of the watch is concerned.
        connection = wanted.connection
        assert connection is not None
        assert connection.overdue(math.inf, 1.0, 1.0) == ""
        assert received[0] == before < total
        assert sent[0] < total

        def drop() -> None:
            received[0] += len(sink.body)
            sink.body = b""

        sink.on_piece = drop
        client.resume(wanted)
        client.resume(wanted)
        assert connection.overdue(math.inf, 1.0, 1.0) != ""
        await asyncio.wait_for(sink.ended.wait(), DEADLINE_S)
        assert sink.outcome == ("end",)
        assert received[0] == total
        assert (await fetch(client)).outcome == ("end",)

    exchange(script, check)


def test_response_that_ends_while_paused_leaves_a_connection_that_reads() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        for _ in range(3):
            sink = Recorder()
            wanted = request(sink)
            sink.on_piece = lambda wanted=wanted: client.pause(wanted)
            client.send(wanted)
            await asyncio.wait_for(sink.ended.wait(), DEADLINE_S)
            client.pause(wanted)
            client.resume(wanted)
        assert server.accepted == 1

    exchange(serve_all, check)


def test_no_first_byte_in_time() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sink = await fetch(client)
        assert sink.outcome == ("broken", "model_timeout")
        assert not sink.heads
        await until(lambda: server.open == 0)

    exchange(responding(close=False), check, first_byte_timeout_s=0.3)


def test_silence_in_the_middle() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sink = await fetch(client)
        assert (sink.outcome, sink.body) == (("broken", "model_timeout"), b"a")

    exchange(responding(CHUNKED + b"1\r\na\r\n", close=False), check, idle_timeout_s=0.3)


def test_silence_without_a_limit_is_never_overdue() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        wanted = request(Recorder())
        client.send(wanted)
        await until(lambda: server.requests)
        assert wanted.connection is not None
        assert wanted.connection.overdue(1e12, 0.0, 0.0) == ""
        wanted.connection.abandon()

    exchange(responding(close=False), check)


def test_no_connection_in_time() -> None:
    async def main() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            address = deaf.getsockname()
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:  # fill the backlog, so that the next handshake hangs
                filler.setblocking(False)
                filler.connect_ex(address)
            async with client_of(f"http://127.0.0.1:{address[1]}", connect_timeout_s=0.3) as client:
                sink = await fetch(client)
                assert sink.outcome == ("lost", False)
                assert "0.3" in str(sink.end)
            for filler in fillers:
                filler.close()

    run(main())


def test_close_all_ends_everything_by_its_state() -> None:
    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/begun" in head:
            await peer.send(CHUNKED + b"1\r\na\r\n")
        if b"/idle" in head:
            await peer.answer()
            if b"reused" in (await peer.request())[0]:
                await peer.hold()
        await peer.hold()

    async def check(client: ModelClient, server: RawServer) -> None:
        await asyncio.gather(*(fetch(client, path="/idle") for _ in range(2)))
        begun, sent, reused, connecting = (Recorder() for _ in range(4))
        client.send(request(reused, path="/reused"))
        client.send(request(sent, path="/sent", redeliver=False))
        client.send(request(begun, path="/begun", redeliver=False))
        await until(lambda: begun.pieces and len(server.requests) == 5)
        client.send(request(connecting, path="/connecting", redeliver=False))
        later = Recorder()
        sent.then = lambda: client.send(request(later, path="/begun"))
        client.close_all("it was killed by signal 9")
        assert begun.outcome == ("broken", "model_failed")
        assert sent.outcome == ("lost", True)
        assert reused.outcome == ("lost", True)
        assert connecting.outcome == ("lost", False)
        assert "signal 9" in str(reused.end)
        assert client.idle == 0
        await until(lambda: later.pieces)  # what was sent in reply to the news goes its own way
        assert later.end is None

    exchange(script, check)


# ------------------------------------------------------------------------------------ probes


def test_probe() -> None:
    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        await peer.answer(b"fine", status=200 if b"/health" in head else 503)
        await peer.hold()

    async def check(client: ModelClient, server: RawServer) -> None:
        async with RawServer(script) as other:
            assert await client.probe("/health", DEADLINE_S) == ProbeResult(200)
            assert (await client.probe("/health", DEADLINE_S)).ok
            assert (await client.probe("/other", DEADLINE_S)) == ProbeResult(503)
            assert (await client.probe(f"{other.url}/health?x=1", DEADLINE_S)).ok
            assert (await client.probe(other.url, DEADLINE_S)).status == 503
        assert [head.split(b" ")[1] for head, _ in other.requests] == [b"/health?x=1", b"/"]
        assert b"host: 127.0.0.1:%d\r\n" % other.port in other.requests[0][0]
        assert client.progress_at == 0.0
        assert client.idle == client.in_flight == 0
        refused = await client.probe(other.url, DEADLINE_S)
        assert not refused.ok
        assert "connect" in refused.error
        with pytest.raises(ValueError, match="must look like"):
            await client.probe("https://127.0.0.1/health", DEADLINE_S)

    exchange(script, check)


def test_reach() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        assert await client.reach(DEADLINE_S) == ""
        server.stop_listening()
        await until(lambda: server.open == 0)
        assert "cannot connect" in await client.reach(DEADLINE_S)

    exchange(serve_all, check)


def test_probe_of_a_mute_or_broken_server() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        result = await client.probe("/health", 0.1)
        assert (result.status, result.ok) == (0, False)
        assert "0.1" in result.error
        await until(lambda: server.open == 0)

    exchange(responding(close=False), check)

    async def broken(client: ModelClient, server: RawServer) -> None:
        assert (await client.probe("/health", DEADLINE_S)).status == 0

    exchange(responding(CHUNKED + b"1\r\na\r\n"), broken)


# --------------------------------------------------------------------------- pure parts


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "https://127.0.0.1",
        "http://",
        "http://u:p@h",
        "http://h:99999",
        "http://h/?q",
        "http://[::1",
        "http://h/#f",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        parse_url(url)


def test_urls() -> None:
    endpoint = parse_url("http://[::1]:8000/a/b/")
    assert (endpoint.host, endpoint.port) == ("::1", 8000)
    assert (endpoint.authority, endpoint.prefix) == ("[::1]:8000", "/a/b")
    assert parse_url("http://model").port == 80


def test_headers_that_end_here_and_headers_that_pass() -> None:
    dropped = "Connection Keep-Alive TE Trailer Upgrade Proxy-Connection Proxy-Authenticate Date"
    lines = [(name.encode(), b"v") for name in dropped.split()]
    lines += [
        (b"connection", b"X-Hop , close"),
        (b"Content-Length", b"12"),
        (b"x-hop", b"1"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"Content-Encoding", b"gzip"),
        (b"X-Empty", b""),
        (b"Server", b"caf\xe9"),
    ]
    head = read_head(200, "POST", lines)
    assert head.headers == (
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\nX-Empty: \r\n"
        b"Server: caf\xe9\r\n"
    )
    assert head.content_length == 12
    assert not head.until_close
    assert not head.streaming


@pytest.mark.parametrize(
    ("content_type", "streaming"),
    [
        (b"text/event-stream; charset=utf-8", True),
        (b"TEXT/EVENT-STREAM", True),
        (b"application/x-ndjson", True),
        (b"application/jsonl", True),
        (b"application/octet-stream", True),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_what_counts_as_a_stream(content_type: bytes, streaming: bool) -> None:
    lines = [(b"content-type", content_type), (b"content-length", b"3")]
    assert read_head(200, "POST", lines).streaming is streaming
    chunked = read_head(200, "POST", [(b"Transfer-Encoding", b"Chunked")])
    assert chunked.streaming
    assert not chunked.until_close


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"chunked, gzip", b"identity"])
def test_a_coding_that_the_client_would_not_hear_of_is_refused(coding: bytes) -> None:
    with pytest.raises(ValueError, match="transfer-encoding"):
        read_head(200, "POST", [(b"Transfer-Encoding", coding)])


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b", b"a\r\nx: y"])
def test_values_that_could_smuggle_a_line_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        read_head(200, "POST", [(b"a", value)])


@pytest.mark.parametrize("value", [b"", b"-1", b"1, 1", b"0x1"])
def test_lengths_that_are_no_number_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a number"):
        read_head(200, "POST", [(b"content-length", value)])


def test_a_model_server_that_moved_gets_everything_that_is_sent_from_now_on() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        def named(body: bytes) -> Script:
            async def script(peer: Peer) -> None:
                while True:
                    head, _ = await peer.request()
                    if b"/slow" in head:
                        await gate.wait()
                    await peer.answer(body)

            return script

        async with (
            RawServer(named(b"old")) as old,
            RawServer(named(b"new")) as new,
            client_of(old.url) as client,
        ):
            assert (await fetch(client)).body == b"old"
            assert client.idle == 1
            slow, late = Recorder(), Recorder()
            client.send(request(slow, path="/slow"))
            await until(lambda: len(old.requests) == 2)
            client.send(request(late, path="/slow"))  # still connecting
            assert not client.move(old.url)
            assert client.move(new.url)
            assert client.idle == 0
            assert (await fetch(client)).body == b"new"
            gate.set()
            await asyncio.gather(slow.ended.wait(), late.ended.wait())
            assert (slow.body, late.body) == (b"old", b"old"), "what runs goes on where it is"
            assert client.idle == 1
            for _ in range(3):
                assert (await fetch(client)).body == b"new"
            assert (await client.probe("/x", DEADLINE_S)).ok and len(new.requests) == 5

    run(main())
