"""One request as it was received: what the framer reads it into. A leaf; it decides nothing."""

from __future__ import annotations

import mmap

from ingress.spool import SpoolFile


class Request:
    """One request as it was received.

    ``headers`` are (lowercased name, value) pairs in their order, never changed in place;
    ``content_length`` is -1 where none was sent; ``has_body`` says whether body bytes follow the
    head, ``keep_alive`` whether the connection may serve another request.
    """

    __slots__ = (
        "body", "chunked", "content_encoding", "content_length", "content_type",
        "expects_continue", "file", "has_body", "headers", "host", "http10", "keep_alive",
        "method", "path", "query",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = self.path = self.query = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.host: bytes | None = None
        #: of the first such line that is not empty, the second in lower case; empty: there is none
        self.content_encoding = self.content_type = b""
        self.content_length = -1
        self.chunked = self.expects_continue = self.has_body = self.http10 = False
        self.keep_alive = True
        self.body: bytes | mmap.mmap = b""
        #: What holds the body in place of memory; the connection that it came on removes it.
        self.file: SpoolFile | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header called ``name`` (lowercase), or None."""
        for have, value in self.headers:
            if have == name:
                return value
        return None
