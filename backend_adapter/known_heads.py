"""Response heads that were read before, by their bytes: a server says mostly the same.

Law: a head is what reading it anew would give, since only those are kept that were read, whole, in
one piece, for a response that was complete then, framed by its length, on a connection that stays.
Bounds: ``MAX_HEADS`` heads of ``MAX_BYTES``; where a server's heads all differ, they only come and
go. Not known here: how a head is read.
"""

from __future__ import annotations

from backend_adapter.response_headers import ResponseHead

MAX_HEADS = 256
MAX_BYTES = 1024
_HEAD_END = b"\r\n\r\n"


class KnownHeads:
    """Those of one model server."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, ResponseHead] = {}

    def split(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Head and body, if ``data`` is exactly one response whose head is known."""
        start = data.find(_HEAD_END, 0, MAX_BYTES) + 4
        head = self._heads.get(data[:start])
        if head is None or len(data) - start != head.content_length:
            return None
        return head, data[start:]

    def learn(self, data: bytes, head: ResponseHead) -> None:
        """``data`` was a complete response with this head, if its length says so, too."""
        start = data.find(_HEAD_END, 0, MAX_BYTES) + 4
        if start < 4 or head.bodiless or len(data) - start != head.content_length:
            return
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[data[:start]] = head
