"""The client of the model server: responses from a server whose every byte is scripted."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend_adapter.file_body import PIECE_BYTES, PIECES_A_TURN
from backend_adapter.messages import FilePart
from backend_adapter.model_client import ModelClient
from backend_adapter.model_connection import HEAD_LIMIT_BYTES
from backend_adapter.model_request import Request
from supervisor import memory_budget
from tests.kit.model_clients import (
    CHUNKED,
    DEADLINE_S,
    Recorder,
    client_of,
    exchange,
    fetch,
    outcome_of,
    request,
    responding,
    run,
    until,
)
from tests.kit.raw_server import Peer, RawServer

# ------------------------------------------------------------------------ responses and framing


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
                held = sent.connection._transport.get_write_buffer_size()
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
