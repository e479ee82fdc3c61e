"""One request as it was received: what the framer reads it into. A leaf; it decides nothing."""

from __future__ import annotations

import mmap

import msgspec

from ingress.spool import SpoolFile


class Request(msgspec.Struct, eq=False):
    """One request as it was received.

    ``headers`` are (lowercased name, value) pairs in their order, never changed in place;
    ``content_length`` is -1 where none was sent; ``has_body`` says whether body bytes follow the
    head, ``keep_alive`` whether the connection may serve another request.
    """

    method: bytes = b""
    path: bytes = b""
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = []
    host: bytes | None = None
    #: of the first such line, the second in lower case; empty: there is none
    content_encoding: bytes = b""
    content_type: bytes = b""
    content_length: int = -1
    chunked: bool = False
    expects_continue: bool = False
    has_body: bool = False
    http10: bool = False
    keep_alive: bool = True
    body: bytes | mmap.mmap = b""
    #: What holds the body in place of memory; the connection that it came on removes it.
    file: SpoolFile | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header called ``name`` (lowercase), or None."""
        for have, value in self.headers:
            if have == name:
                return value
        return None
