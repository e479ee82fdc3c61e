"""What our server takes, another reader of HTTP takes, too, and in the same way.

Request smuggling lives where two readers see different ends of one request. The other reader is
h11, written by others after the same RFC; the requests are made of what is known to divide readers.
"""

from __future__ import annotations

from typing import NamedTuple

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.kit.bad_requests import Requests
from tests.properties.test_http_framing import Run

BODY = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
REQUESTS = Requests(b"/now", BODY)


class Read(NamedTuple):
    """One request."""

    method: bytes
    target: bytes
    body: bytes


def ours(data: bytes) -> list[Read]:
    """What our server hands to its application."""
    seen = Run([data], eof=True).seen
    return [
        Read(one.method, one.path + (b"?" + one.query if one.query else b""), one.body)
        for one in seen
    ]


def theirs(data: bytes) -> tuple[list[Read], bool]:
    """What h11 reads of it, and whether the connection ended regularly behind that."""
    read: list[Read] = []
    while data := data.lstrip(b"\r\n"):  # h11 knows no empty lines before a request
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        try:
            request = connection.next_event()
            body = b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
        except h11.RemoteProtocolError:
            return read, False
        if not isinstance(event, h11.EndOfMessage):
            return read, False
        assert isinstance(request, h11.Request)
        read.append(Read(request.method, request.target, body))
        connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return read, True
        data = connection.trailing_data[0]
    return read, False


def check(data: bytes) -> None:
    """The law."""
    mine = ours(data)
    other, closed = theirs(data)
    both = min(len(mine), len(other))
    assert mine[:both] == other[:both], "the same bytes, two readings"
    assert len(mine) <= len(other) or closed, "taken, and refused or unfinished for the other"


lengths = st.sampled_from(
    [b"0", b"3", b"5", b"%d" % len(BODY), b"05", b"+5", b"5 ", b"5, 5", b"5;", b"0x5", b"", b"1_0"]
)
codings = st.sampled_from(
    [
        b"chunked", b"Chunked", b"\tchunked", b"chunked ", b"chunked,", b"identity", b"x, chunked",
        b"chunked, x", b'"chunked"', b"\x0bchunked", b"chunked\x0c", b"\xa0chunked", b"", b"gzip",
    ]
)  # fmt: skip
names = st.sampled_from(
    [b"Content-Length", b"content-length", b"Transfer-Encoding", b"TRANSFER-ENCODING", b"X-Any",
     b"Transfer_Encoding", b"Content-Length ", b" Transfer-Encoding", b"Expect", b"Connection",
     b"Upgrade"]
)  # fmt: skip
values = lengths | codings | st.sampled_from([b"100-continue", b"close", b"keep-alive", b"h2c"])
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n "])
lines = st.builds(lambda name, value, end: name + b": " + value + end, names, values, ends)
sizes = st.sampled_from(
    [b"5"] * 12
    + [b"05", b"0x5", b"+5", b"-5", b"5 ", b" 5", b"5;a=b", b"5;a\n", b"5;\r", b"5_0", b"G",
     b"ffffffffffffffff", b"10000000000000005", b""]
)  # fmt: skip
chunks = st.builds(
    lambda size, data, end: size + b"\r\n" + data + end,
    sizes,
    st.sampled_from([b"hello"] * 6 + [b"hell", b"hello!"]),
    st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"", b"XX"]),
)
trailers = st.sampled_from(
    [b"\r\n"] * 6
    + [b"X: y\r\n\r\n", b"Content-Length: 5\r\n\r\n", b"GET /t HTTP/1.1\r\n\r\n", b"\n", b""]
)
bodies = st.one_of(
    st.sampled_from([b"", b"abc", b"hello", BODY, REQUESTS.chunks, b"0\r\n\r\n"]),
    st.builds(
        lambda parts, last, end: b"".join(parts) + last + end,
        st.lists(chunks, max_size=3),
        st.sampled_from([b"0\r\n"] * 6 + [b"00\r\n", b"0;a\r\n", b"0\n", b"-0\r\n"]),
        trailers,
    ),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A request with a few lines that matter, a body that may fit, and an honest one behind it."""
    method = draw(st.sampled_from([b"POST", b"GET", b"OPTIONS", b"HEAD"]))
    version = draw(st.sampled_from([b"1.1"] * 5 + [b"1.0"]))
    head = method + b" /now HTTP/" + version + b"\r\nHost: a\r\n"
    good = (b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n")
    head += draw(st.sampled_from(good)) + b"".join(draw(st.lists(lines, max_size=2)))
    return head + b"\r\n" + draw(bodies) + REQUESTS.sized()


odd = {name: bad.data for name, bad in (REQUESTS.lengths() | REQUESTS.bad_chunks()).items()}
odd |= REQUESTS.taken()
#: The other reader leaves such a target as it is.
APART = {"absolute target"}
names_of_odd = st.sampled_from(sorted(set(odd) - APART))


def test_the_table_of_odd_requests_has_no_second_reading() -> None:
    for name, data in odd.items():
        if name not in APART:
            check(data + REQUESTS.sized())


@given(streams())
@settings(max_examples=200)
@example(REQUESTS.chunked(tail=b"0\r\nGET /t HTTP/1.1\r\n\r\n"))
def test_what_divides_readers_has_no_second_reading(data: bytes) -> None:
    check(data)


@given(
    st.sampled_from(sorted(set(odd) - APART)),
    st.integers(0, 400),
    st.binary(min_size=1, max_size=2),
)
@settings(max_examples=200)
def test_damaged_odd_requests_have_no_second_reading(name: str, at: int, put: bytes) -> None:
    data = odd[name]
    at %= len(data)
    check(data[:at] + put + data[at + len(put) :] + REQUESTS.sized())
