"""However the bytes are cut, the same requests come out and the same answers go back.

The real connection, parser and exchange run over a wire in memory, because only there a test
decides where the pieces end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingress.connection import Connection
from ingress.errors import Problem
from ingress.exchange import Exchange
from ingress.known_requests import MAX_HEADS, KnownRequests
from ingress.shared import Shared
from supervisor.settings import LimitSettings

LIMITS = LimitSettings(
    request_line_bytes=100, header_bytes=400, header_count=8, body_bytes=2000, buffered_bytes=5000
)


class Wire:
    """A transport whose bytes stay in memory."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent += data

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self.closed = True

    abort = close

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else None

    def setsockopt(self, level: int, name: int, value: bytes) -> None: ...


class Seen(NamedTuple):
    method: bytes
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Run:
    """One connection: application, loop and wire in one object, so that nothing is timed."""

    def __init__(
        self, pieces: list[bytes], eof: bool = False, known: KnownRequests | None = None
    ) -> None:
        self.seen: list[Seen] = []
        self.gone = 0
        self._later: list[Callable[[], None]] = []
        self._held: list[Exchange] = []
        wire: Any = Wire()
        loop: Any = self
        self.shared = Shared(self, LIMITS, loop, 10, lambda: None)
        self.shared.prefixes.tick(0)
        self.shared.known = known or self.shared.known
        connection = Connection(self.shared)
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
            self._settle()
        self.closed = wire.closed
        if eof:
            connection.eof_received()
        connection.connection_lost(None)
        self._settle()
        self.sent: bytes = wire.sent
        assert self.shared.active == 0
        assert self.shared.intake.budget.memory == 0

    def _settle(self) -> None:
        while self._held or self._later:
            for exchange in self._held[:]:
                self._held.remove(exchange)
                self._answer(exchange)
            for callback in self._later[:]:
                self._later.remove(callback)
                callback()

    # The loop's part.

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._later.append(callback)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(context) from context["exception"]

    # The application's part: the path says how it answers.

    def on_head(self, exchange: Exchange) -> Problem | None:
        return None

    def on_request(self, exchange: Exchange) -> None:
        self.seen.append(
            Seen(exchange.method, exchange.path, exchange.query, exchange.headers, exchange.body)
        )
        if exchange.path == b"/later":
            self._held.append(exchange)
        else:
            self._answer(exchange)

    def _answer(self, exchange: Exchange) -> None:
        if exchange.path == b"/stream":
            exchange.begin(200, b"")
            exchange.write(exchange.body)
            exchange.write(exchange.query)
            exchange.finish()
        else:
            exchange.respond(200, b"x: y\r\n", exchange.query + exchange.body)

    def on_writable(self, exchange: Exchange) -> None: ...

    def on_disconnect(self, exchange: Exchange) -> None:
        self.gone += 1


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


class Sent(NamedTuple):
    wire: bytes
    seen: Seen


names = st.sampled_from([b"X-A", b"accept", b"User-Agent"])
values = st.binary(max_size=12).map(lambda raw: bytes(33 + byte % 90 for byte in raw))


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A valid request, and what the application should see of it."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE"]))
    path = draw(st.sampled_from([b"/now", b"/later", b"/stream"]))
    query = draw(values).replace(b"#", b"")
    lines = [(b"Host", b"a"), *draw(st.lists(st.tuples(names, values), max_size=3))]
    body = draw(st.binary(max_size=300))
    kind = draw(st.sampled_from(["none", "sized", "chunked"]))
    if kind == "none":
        tail = body = b""
    elif kind == "sized":
        lines.append((b"Content-Length", b"%d" % len(body)))
        tail = body
    else:
        lines.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        extension = draw(st.sampled_from([b"", b";a=b", b";" + b"e" * 50]))
        pieces = cut(body, draw(st.lists(st.integers(0, 300), max_size=4)))
        tail = b"".join(
            b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece
        )
        tail += b"0\r\n" + draw(st.sampled_from([b"", b"X-Late: y\r\n"])) + b"\r\n"
    if draw(st.booleans()):
        lines.append((b"Expect", b"100-continue"))
    target = path + (b"?" + query if query else b"")
    head = b"%b %b HTTP/1.1\r\n" % (method, target)
    head += b"".join(
        b"%b:%b%b\r\n" % (name, b" " * (len(value) % 3), value) for name, value in lines
    )
    wire = draw(st.sampled_from([b"", b"\r\n", b"\r\n\r\n"])) + head + b"\r\n" + tail
    seen = [(name.lower(), value) for name, value in lines]
    return Sent(wire, Seen(method, path, query, seen, body))


class Forgetful(KnownRequests):
    """It knows no head."""

    def find(self, head: bytes) -> None:
        return None


streams = st.lists(requests(), min_size=1, max_size=5)
cuts = st.lists(st.integers(0, 5000), max_size=12)


@given(streams, cuts)
def test_cuts_do_not_matter(sent: list[Sent], places: list[int]) -> None:
    data = b"".join(one.wire for one in sent)
    whole = Run([data])
    pieces = Run(cut(data, places))
    assert whole.seen == [one.seen for one in sent]
    assert pieces.seen == whole.seen
    assert pieces.sent == whole.sent
    assert not whole.closed
    assert not pieces.closed


@given(streams)
@settings(max_examples=30)
def test_byte_by_byte(sent: list[Sent]) -> None:
    data = b"".join(one.wire for one in sent)
    single = Run([data[place : place + 1] for place in range(len(data))])
    assert single.seen == [one.seen for one in sent]
    assert single.sent == Run([data]).sent


@given(streams, st.integers(0, 5000), cuts)
def test_a_prefix_never_yields_an_unfinished_request(
    sent: list[Sent], length: int, places: list[int]
) -> None:
    data = b"".join(one.wire for one in sent)[:length]
    complete: list[Seen] = []
    end = 0
    for one in sent:
        end += len(one.wire)
        if end <= len(data):
            complete.append(one.seen)
    run = Run(cut(data, places), eof=True)
    assert run.seen == complete
    assert run.gone == 0


@given(streams, st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=3), cuts)
@example(
    [Sent(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Seen(b"GET", b"/", b"", [], b""))], [(14, 0)], [1]
)
def test_damaged_bytes_are_understood_the_same_way_however_cut(
    sent: list[Sent], damage: list[tuple[int, int]], places: list[int]
) -> None:
    data = bytearray(b"".join(one.wire for one in sent))
    for place, byte in damage:
        data[place % len(data)] = byte
    whole = Run([bytes(data)])
    pieces = Run(cut(bytes(data), places))
    assert pieces.seen == whole.seen


@given(streams, st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=2), cuts)
def test_known_heads_change_nothing(
    sent: list[Sent], damage: list[tuple[int, int]], places: list[int]
) -> None:
    """Damaged or not: a head that was read before is read as if it were the first."""
    known = KnownRequests()
    for one in sent:
        Run([one.wire], known=known)
    data = bytearray(b"".join(one.wire for one in sent))
    for place, byte in damage:
        data[place % len(data)] = byte
    ends = list(itertools.accumulate(len(one.wire) for one in sent))
    for pieces in (cut(bytes(data), ends), cut(bytes(data), [*ends, *places])):
        anew, again = Run(pieces, known=Forgetful()), Run(pieces, known=known)
        assert (again.seen, again.sent, again.closed) == (anew.seen, anew.sent, anew.closed)


def test_a_known_head_with_another_length() -> None:
    known = KnownRequests()
    head = b"POST /now HTTP/1.1\r\nHost: a\r\nX-A: b\r\nContent-Length: %b\r\nAccept: c\r\n\r\n"
    Run([head % b"3" + b"abc"], known=known)
    for digits in (
        b"0",
        b"3",
        b"1999",
        b"2000",
        b"2001",
        b"007",
        b"",
        b"1 ",
        b"+1",
        b"1_0",
        b"9" * 30,
    ):
        for body in (b"", b"abc", b"x" * 2001):
            wire = head % digits + body
            for pieces in ([wire], [wire[:90], wire[90:]]):
                anew, again = Run(pieces, known=Forgetful()), Run(pieces, known=known)
                assert (again.seen, again.sent, again.closed) == (anew.seen, anew.sent, anew.closed)


def test_known_heads_are_bounded() -> None:
    known = KnownRequests()
    for number in range(3 * MAX_HEADS):
        head = b"POST /now HTTP/1.1\r\nHost: a\r\nX-A: %d\r\nContent-Length: 2\r\n\r\n" % number
        Run([head + b"ab"], known=known)
        assert known.find(head.replace(b"gth: 2", b"gth: 3")) is not None
        assert len(known._heads) <= MAX_HEADS


@given(st.binary(max_size=300), cuts)
def test_noise_is_never_a_request(noise: bytes, places: list[int]) -> None:
    run = Run(cut(b"\x00" + noise, places))
    assert run.seen == []
    assert run.sent.startswith(b"HTTP/1.1 400 ")


@given(
    st.integers(-3, 3),
    st.sampled_from(["line", "header", "count", "sized", "chunked"]),
    cuts,
)
def test_limits_hold_for_any_cut(beyond: int, what: str, places: list[int]) -> None:
    line, headers, body = b"GET /%b HTTP/1.1\r\n", b"Host: a\r\n", b""
    if what == "line":
        status = 414
        line %= b"p" * (LIMITS.request_line_bytes - len(b"GET / HTTP/1.1") + beyond)
    else:
        line %= b""
    if what == "header":
        status = 431
        # The empty line belongs to the headers.
        headers += b"X: %b\r\n" % (b"v" * (LIMITS.header_bytes - 16 + beyond))
    elif what == "count":
        status = 431
        headers += b"X: v\r\n" * (LIMITS.header_count - 1 + beyond)
    elif what == "sized":
        status = 413
        body = b"b" * (LIMITS.body_bytes + beyond)
        headers += b"Content-Length: %d\r\n" % len(body)
    elif what == "chunked":
        status = 413
        headers += b"Transfer-Encoding: chunked\r\n"
        last = b"b" * (LIMITS.body_bytes - 500 + beyond)
        body = b"1f4\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (b"b" * 500, len(last), last)
    run = Run(cut(line + headers + b"\r\n" + body, places))
    if beyond > 0:
        assert run.seen == []
        assert run.sent.startswith(b"HTTP/1.1 %d " % status)
    else:
        assert len(run.seen) == 1
        assert run.sent.startswith(b"HTTP/1.1 200 ")
