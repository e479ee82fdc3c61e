"""What the header lines of a model server's response mean, and which of them go on to the client.

Law: headers that speak about one connection (hop-by-hop), and those that ingress writes itself
(``content-length``, ``date``), end here; every other one passes unchanged and in order, duplicates
included. A value that could end a header line early never passes.

Pure, and a leaf: it knows neither sockets nor the parser.
"""

from __future__ import annotations

import msgspec

#: RFC 9110 7.6.1, the older ``proxy-*`` and ``keep-alive``, and what ingress writes itself.
_DROPPED = frozenset(
    (
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_STREAMED = ("text/event-stream", "application/x-ndjson", "application/jsonl")
_BODILESS = (204, 304)


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """The head of a response, as far as it matters further on."""

    status: int
    headers: bytes  #: the lines that go on, each ending in CRLF
    content_length: int  #: -1: not known
    #: Pieces are passed on as they come (the rule of the peer's default response).
    streaming: bool
    until_close: bool  #: the end of the connection is the end of the body
    bodiless: bool  #: nothing follows the head, whatever it says
    #: It says that a body follows which must not: nobody knows where the next response begins.
    contradictory: bool


def read_head(status: int, method: str, lines: list[tuple[bytes, bytes]]) -> ResponseHead:
    """Sort the header lines of the response to a request of this method.

    Raises:
        ValueError: a value holds CR, LF or NUL, content-length is no number, or the body is coded
            in a way that its receiver would not be told of.
    """
    length = -1
    encoding = content_type = connection = b""
    kept: list[bytes] = []
    named: list[bytes] = []
    for name, value in lines:
        lower = name.lower()
        if lower == b"content-length":
            if not value.isdigit():
                raise ValueError("content-length is not a number")
            length = int(value)
        elif lower == b"transfer-encoding":
            encoding += b"," + value
        elif lower == b"connection":
            connection += b"," + value
        elif lower not in _DROPPED:
            if lower == b"content-type":
                content_type = value
            kept.append(b"%b: %b\r\n" % (name, value))
            named.append(lower)
    if connection:
        tokens = {token.strip().lower() for token in connection.split(b",")}
        if not tokens.isdisjoint(named):
            kept = [line for line, lower in zip(kept, named) if lower not in tokens]
    headers = b"".join(kept)
    if headers.count(b"\n") != len(kept) or headers.count(b"\r") != len(kept) or b"\0" in headers:
        raise ValueError("a header value holds CR, LF or NUL")
    announced = length
    bodiless = method == "HEAD" or status in _BODILESS
    coding = encoding.strip(b", \t").lower()
    if coding not in (b"", b"chunked"):
        raise ValueError("its transfer-encoding is another than chunked")
    chunked = bool(coding)
    if bodiless:
        length = 0
    elif chunked:
        length = -1
    return ResponseHead(
        status=status,
        headers=headers,
        content_length=length,
        streaming=not bodiless and (chunked or _is_streamed(content_type)),
        until_close=not bodiless and not chunked and length < 0,
        bodiless=bodiless,
        contradictory=status in _BODILESS and (chunked or (status == 204 and announced > 0)),
    )


def _is_streamed(content_type: bytes) -> bool:
    text = content_type.decode("latin-1").lower()
    return "stream" in text or text.startswith(_STREAMED)
