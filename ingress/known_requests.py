"""Request heads that were read before, by their bytes: a client says mostly the same, but for the
length of the body.

Law: a head is what reading it anew would give. Only those are kept that llhttp read in one piece,
with one length in plain digits and nothing in them that changes how the rest is read (chunks,
expectations, upgrades); digits in place of those digits cannot change how the other bytes are read.
Bounds: twice ``MAX_HEADS`` heads of ``MAX_BYTES`` and ``MAX_LINES``, some MiB with their objects. A
head may hold a client's key: it is looked up by a hash, as a whole, and leaves this room only into
the request that came with it.

Not known here: sockets, bodies, and how a head is read.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_HEADS = 128
MAX_BYTES = 2048
MAX_LINES = 32
MAX_DIGITS = 15
#: As clients write it; whoever writes it otherwise is read anew each time.
_NAMES = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_NAME_BYTES = len(_NAMES[0])


class Known(NamedTuple):
    """What a head says; the names are those of ``Request``."""

    method: bytes
    path: bytes
    query: bytes
    host: bytes | None
    content_type: bytes
    content_encoding: bytes
    keep_alive: bool
    http10: bool
    content_length: int
    headers: list[tuple[bytes, bytes]]


class KnownRequests:
    """Those of one server."""

    __slots__ = ("_heads", "_latest")

    def __init__(self) -> None:
        #: by what they are without the digits of their length
        self._heads: dict[bytes, Known] = {}
        #: by all of it, to find those at once that come again and again
        self._latest: dict[bytes, Known] = {}

    def find(self, head: bytes) -> Known | None:
        """What a complete head says."""
        return self._latest.get(head) or self._with_its_length(head)

    def _with_its_length(self, head: bytes) -> Known | None:
        key, digits = _cut(head)
        known = self._heads.get(key)
        if known is None or not digits.isdigit() or len(digits) > MAX_DIGITS:
            return None
        lines = [(name, digits if name == b"content-length" else it) for name, it in known.headers]
        known = known._replace(content_length=int(digits), headers=lines)
        if len(self._latest) >= MAX_HEADS:
            self._latest.clear()
        self._latest[head] = known
        return known

    def learn(self, head: bytes, known: Known) -> None:
        """This head was read so."""
        key, digits = _cut(head)
        if digits != b"%d" % known.content_length:
            return  # written oddly, or of another line
        if len(head) > MAX_BYTES or len(known.headers) > MAX_LINES:
            return
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[key] = known


def _cut(head: bytes) -> tuple[bytes, bytes]:
    """A head without the digits of its length, and those; none where no such line is found."""
    start = head.find(_NAMES[0])
    if start < 0:
        start = head.find(_NAMES[1])
        if start < 0:
            return head, b""
    start += _NAME_BYTES
    stop = head.find(b"\r", start)
    return head[:start] + head[stop:], head[start:stop]
