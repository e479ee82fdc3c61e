"""The client of the model server: what it sends, and on which connection; what breaks at once."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
import time
from typing import Any

import pytest

from backend_adapter import model_client
from backend_adapter.model_client import ModelClient
from tests.kit.model_clients import (
    DEADLINE_S,
    Recorder,
    client_of,
    exchange,
    fetch,
    outcome_of,
    request,
    responding,
    run,
    serve_all,
    until,
)
from tests.kit.raw_server import Peer, RawServer, Script

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


def test_parallel_requests_get_their_own_connections_and_so_many_are_kept() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        sinks = [Recorder() for _ in range(20)]
        for number, sink in enumerate(sinks):
            client.send(request(sink, body=b"%d" % number))
        assert client.in_flight == 20
        await until(lambda: all(sink.end for sink in sinks))
        assert [sink.body for sink in sinks] == [b"%d" % number for number in range(20)]
        assert client.idle == 3
        await until(lambda: server.open == 3)

    exchange(serve_all, check, max_kept=3)


def test_what_a_burst_has_left_goes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_client, "LONG_KEPT", 2)

    async def check(client: ModelClient, server: RawServer) -> None:
        sinks = [Recorder() for _ in range(6)]
        for sink in sinks:
            client.send(request(sink))
        await until(lambda: all(sink.end for sink in sinks))
        assert client.idle == 6
        await until(lambda: client.idle == 2 and server.open == 2)
        last = Recorder()
        client.send(request(last))
        await until(lambda: last.end)
        assert server.accepted == 6 and client.idle == 2

    exchange(serve_all, check)


def test_a_request_that_wants_a_new_connection_closes_one_that_is_kept() -> None:
    async def check(client: ModelClient, server: RawServer) -> None:
        for redeliver in (True, True, True, False):
            sinks = [Recorder() for _ in range(3 if redeliver else 1)]
            for sink in sinks:
                client.send(request(sink, redeliver=redeliver))
            assert client.in_flight + client.idle <= 3
            await until(lambda sinks=sinks: all(sink.end for sink in sinks))
        assert server.accepted == 4 and client.idle == 3
        await until(lambda: server.open == 3)

    exchange(serve_all, check, max_kept=3)


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
