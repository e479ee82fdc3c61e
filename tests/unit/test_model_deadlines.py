"""The client of the model server: cancel, pause, deadlines, probes."""

from __future__ import annotations

import asyncio
import math
import socket

import pytest

from backend_adapter.model_client import ModelClient, ProbeResult
from tests.kit.model_clients import (
    CHUNKED,
    DEADLINE_S,
    Recorder,
    client_of,
    exchange,
    fetch,
    request,
    responding,
    run,
    serve_all,
    until,
)
from tests.kit.raw_server import Peer, RawServer

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
