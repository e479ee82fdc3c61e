"""A request's body while it arrives: either as long as announced, or in chunks.

Both kinds read from the pieces that the socket delivers, keep what belongs to the body, and say
where it ended. Chunks are decoded here and not by llhttp, which would run on into the next
message; the rules are the strict ones of RFC 9112 section 7.1, so that no two readers can see
two different ends.

Law: bytes held never exceed the limit, nor are they held in more objects than the limit divided
by 16 KiB, however small the pieces. This module is a leaf below ``framing.py``.
"""

from __future__ import annotations

from ingress.errors import ErrorKind, Problem
from ingress.spool import SpoolFile, gather

#: Longest chunk header (size and extensions), bytes.
CHUNK_LINE_BYTES = 1024

#: Longest trailer section, bytes. Trailers are read and thrown away.
TRAILER_BYTES = 4096

_HEX = b"0123456789abcdefABCDEF"
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
_TOKEN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
#: A reader that takes trailers for headers would believe these.
_NO_TRAILERS = frozenset({b"content-length", b"host", b"transfer-encoding"})


class Body:
    """What is common to both kinds: the pieces held so far, in memory or in a file."""

    __slots__ = ("_file", "_pieces", "size_bytes")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._file: SpoolFile | None = None
        #: Bytes held so far.
        self.size_bytes = 0

    def read(self, data: bytes, start: int) -> int:
        """Read from ``data[start:]``.

        :return: offset of the first byte after the body; -1: all was read and more is needed.
        :raises Problem: invalid_request, body_too_large, too_many_headers.
        """
        raise NotImplementedError

    def spool(self, file: SpoolFile) -> None:
        """Hold it in this file from now on. Raises Problem (memory)."""
        self._file = file
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            file.write(piece)

    def join(self) -> bytes:
        """The whole body; copied at most once. Empty, if it is in a file."""
        pieces = self._pieces
        if len(pieces) == 1 and type(pieces[0]) is bytes:
            return pieces[0]
        return b"".join(pieces)

    def _keep(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        if self._file is not None:
            self._file.write(piece)
        else:
            gather(self._pieces, piece)


class SizedBody(Body):
    """A body of exactly ``length`` bytes (Content-Length)."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length

    def read(self, data: bytes, start: int) -> int:
        piece = data[start : start + self._left]
        self._keep(piece)
        self._left -= len(piece)
        return -1 if self._left else start + len(piece)


class ChunkedBody(Body):
    """A body in chunks (Transfer-Encoding: chunked) of at most ``limit_bytes`` together."""

    __slots__ = ("_left", "_limit_bytes", "_partial", "_read_phase")

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes
        #: Bytes of the chunk at hand still to come.
        self._left = 0
        #: Read already, but not enough to understand; at most one line or one trailer section.
        self._partial = b""
        self._read_phase = self._read_size

    def read(self, data: bytes, start: int) -> int:
        partial = self._partial
        if partial:
            data = partial + data[start:]
            shift = start - len(partial)
            self._partial = b""
            start = 0
        else:
            shift = 0
        size = len(data)
        while start < size:
            after = self._read_phase(data, start)
            if after == start:
                self._partial = data[start:]
                return -1
            if after < 0:
                return -after + shift
            start = after
        return -1

    # Each phase returns the offset that it read to; ``start`` when it needs more bytes than there
    # are; the negated offset when the body has ended there.

    def _read_size(self, data: bytes, start: int) -> int:
        end = data.find(b"\r\n", start, start + CHUNK_LINE_BYTES + 2)
        if end < 0:
            if len(data) - start > CHUNK_LINE_BYTES:
                raise _malformed(f"a chunk header is over {CHUNK_LINE_BYTES} bytes")
            _refuse_bare_lf(data, start)
            return start
        line = data[start:end]
        digits, _, extensions = line.partition(b";")
        if not digits or len(digits) > 16 or digits.strip(_HEX):
            raise _malformed("a chunk size is no hexadecimal number")
        if extensions.translate(None, _CONTROLS) != extensions:
            raise _malformed("a chunk extension holds control characters")
        self._left = int(digits, 16)
        if self.size_bytes + self._left > self._limit_bytes:
            raise too_large(self._limit_bytes)
        self._read_phase = self._read_data if self._left else self._read_trailers
        return end + 2

    def _read_data(self, data: bytes, start: int) -> int:
        piece = data[start : start + self._left]
        self._keep(piece)
        self._left -= len(piece)
        if not self._left:
            self._read_phase = self._read_data_end
        return start + len(piece)

    def _read_data_end(self, data: bytes, start: int) -> int:
        end = data[start : start + 2]
        if end == b"\r\n":
            self._read_phase = self._read_size
            return start + 2
        if end == b"\r":
            return start
        raise _malformed("a chunk is longer than its size says")

    def _read_trailers(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            return -(start + 2)
        end = data.find(b"\r\n\r\n", start, start + TRAILER_BYTES)
        if end >= 0:
            for line in data[start:end].split(b"\r\n"):
                _check_trailer(line)
            return -(end + 4)
        if len(data) - start >= TRAILER_BYTES:
            raise Problem(
                ErrorKind.TOO_MANY_HEADERS, f"The trailers are over {TRAILER_BYTES} bytes."
            )
        _refuse_bare_lf(data, start)
        return start


def too_large(limit_bytes: int) -> Problem:
    """The problem of a body that is longer than ``limit_bytes``."""
    return Problem(
        ErrorKind.BODY_TOO_LARGE, f"The body is over {limit_bytes} bytes; send a smaller one."
    )


def _malformed(what: str) -> Problem:
    return Problem(ErrorKind.INVALID_REQUEST, f"The chunked body is malformed: {what}.")


def _check_trailer(line: bytes) -> None:
    # Thrown away, but only if nobody could take it for something else.
    name, colon, value = line.partition(b":")
    if not colon or not name or name.translate(None, _TOKEN):
        raise _malformed("a trailer is no header line")
    if name.lower() in _NO_TRAILERS:
        raise _malformed("a trailer says where a request ends, or whose it is")
    if value.translate(None, _CONTROLS) != value:
        raise _malformed("a trailer holds control characters")


def _refuse_bare_lf(data: bytes, start: int) -> None:
    # Without this a client that ends lines with LF alone would be left waiting for a deadline.
    if data.count(b"\n", start) != data.count(b"\r\n", start):
        raise _malformed("a line ends without CR")
