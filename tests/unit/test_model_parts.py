"""The client of the model server: its pure parts, and a server that moves."""

from __future__ import annotations

import asyncio

import pytest

from backend_adapter.model_client import parse_url
from backend_adapter.response_headers import read_head
from tests.kit.model_clients import (
    DEADLINE_S,
    Recorder,
    client_of,
    fetch,
    request,
    run,
    until,
)
from tests.kit.raw_server import Peer, RawServer, Script

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
