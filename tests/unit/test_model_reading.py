"""The client of the model server: however a response is cut, the answer is the same."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend_adapter import known_heads
from backend_adapter.known_heads import KnownHeads
from backend_adapter.model_connection import Connection
from backend_adapter.model_request import Request
from tests.kit.model_clients import (
    CHUNKED,
    Recorder,
    request,
)

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
