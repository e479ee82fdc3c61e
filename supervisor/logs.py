"""Drains the output of others, without ever blocking them, the loop, or ourselves.

``Capture`` reads the pipe of a child of ours, ``Tail`` follows a file that something else writes.
Both cut bytes into lines (``LineSplitter``) and give them to the same places: a rotating file, a
ring for ``logs`` and the page, the patterns to look for, an echo on our own console.

Law: memory is bounded whatever arrives: one partial line of ``MAX_LINE_BYTES`` and
``MAX_SECRET_BYTES``, one ring of ``RING_LINES`` and ``RING_BYTES``, one read. What does not fit is
dropped and counted. One wake-up of the loop reads at most ``READS_AT_ONCE`` × ``READ_BYTES``.
Secrets are masked before a line goes anywhere, and before it is cut, or the beginning of one would
stay.

It must not know whose output it is, nor what a match means.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

from supervisor.console import Console
from supervisor.log_file import RotatingFile

__all__ = ["Capture", "Console", "Kept", "LineSplitter", "Ring", "RotatingFile", "Tail"]

MAX_LINE_BYTES = 16 * 1024
#: What is looked at beyond that, for a secret that begins before it.
MAX_SECRET_BYTES = 4 * 1024
RING_LINES = 500
RING_BYTES = 1 << 20
READ_BYTES = 64 * 1024
READS_AT_ONCE = 4
#: Reads that may empty a pipe when it is closed: 4 MiB, more than a pipe holds.
DRAIN_READS = 64

_log = logging.getLogger("supervisor")
#: Called with (kind, pattern, line) for every pattern that a line contains.
OnMatch = Callable[[str, str, str], None]


class LineSplitter:
    """Bytes in, lines out. A carriage return ends a line too: progress bars write nothing else.

    A line is cut after ``max_bytes``; the rest of it is dropped and counted in ``dropped_bytes``.
    ``more_bytes`` of that rest come all the same, for whoever cuts it himself.
    """

    __slots__ = (
        "_after_return", "_max_bytes", "_more_bytes", "_partial", "_partial_bytes", "dropped_bytes"
    )  # fmt: skip

    def __init__(self, max_bytes: int = MAX_LINE_BYTES, more_bytes: int = 0) -> None:
        self._max_bytes = max_bytes
        self._more_bytes = more_bytes
        self._partial = b""
        self._partial_bytes = 0  # with what was dropped of it
        self._after_return = False
        self.dropped_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends."""
        if not data:
            return []
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *others = data.split(b"\n")
        self._append(first)
        if not others:
            return []
        lines = self._end_line()
        last = others.pop()
        limit = self._max_bytes
        for line in others:
            if len(line) > limit:
                self.dropped_bytes += len(line) - limit
                line = line[: limit + self._more_bytes]
            lines.append(line)
        self._append(last)
        return lines

    def flush(self) -> list[bytes]:
        """The line that was never ended, when there is one; for the end of the input."""
        self._after_return = False
        return self._end_line() if self._partial else []

    def _end_line(self) -> list[bytes]:
        line, self._partial, self._partial_bytes = self._partial, b"", 0
        return [line]

    def _append(self, piece: bytes) -> None:
        before = max(self._partial_bytes, self._max_bytes)
        self._partial_bytes += len(piece)
        self.dropped_bytes += max(self._partial_bytes - before, 0)
        self._partial += piece[: self._max_bytes + self._more_bytes - len(self._partial)]


class Ring:
    """The last lines, numbered from 0 on since the ring was made."""

    __slots__ = ("_bytes", "_lines", "count")

    def __init__(self) -> None:
        self._lines: deque[tuple[str, int]] = deque()
        self._bytes = 0
        #: lines so far: the number of the next one
        self.count = 0

    def extend(self, lines: Sequence[str]) -> None:
        """Add lines; the oldest ones leave."""
        self.count += len(lines)
        for line in lines[-RING_LINES:]:
            size = len(line.encode())
            self._lines.append((line, size))
            self._bytes += size
        while len(self._lines) > RING_LINES or self._bytes > RING_BYTES:
            self._bytes -= self._lines.popleft()[1]

    def since(self, cursor: int) -> tuple[list[str], int]:
        """The lines from number ``cursor`` on that are still held, and the next cursor.

        A cursor of another ring's (beyond the end) starts from the oldest line.
        """
        oldest = self.count - len(self._lines)
        skip = cursor - oldest if oldest <= cursor <= self.count else 0
        return [line for line, _ in self._lines][skip:], self.count


class Places(TypedDict, total=False):
    """Where the lines of one source go."""

    #: where they are kept
    file: RotatingFile
    #: (kind, text) pairs to look for, each anywhere in a line
    patterns: Sequence[tuple[str, str]]
    #: called with (kind, text, line) for each one found, in the order of the lines
    on_match: OnMatch
    #: takes secrets out of a text of several lines
    mask: Callable[[str], str]
    #: called with every line
    echo: Callable[[str], object] | None
    #: holds the latest lines, of sources before this one too; a new one when it is not given
    ring: Ring


class LineSink:
    """Cuts one source's bytes into lines and gives them to its ``Places`` and to ``ring``."""

    def __init__(self, **places: Unpack[Places]) -> None:
        self.ring = places.get("ring") or Ring()
        #: number of this source's first line in the ring
        self.begins = self.ring.count
        self.splitter = LineSplitter(more_bytes=MAX_SECRET_BYTES)
        self.file = places.get("file")
        self._patterns = places.get("patterns", ())
        self._on_match = places.get("on_match")
        self._mask = places.get("mask")
        self._echo = places.get("echo")

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._take(self.splitter.feed(data))

    def end(self) -> None:
        """The source has ended: a last line without an end is a line too."""
        self._take(self.splitter.flush())

    def _take(self, lines: list[bytes]) -> None:
        # All lines of a read at once: a flood is many short ones.
        if not lines:
            return
        lines = [line if len(line) <= MAX_LINE_BYTES else self._cut(line) for line in lines]
        text = b"\n".join(lines).decode("utf-8", "replace")
        if self._mask is not None:
            text = self._mask(text)
        if self.file is not None:
            self.file.write(text.encode() + b"\n")
        texts = text.split("\n")
        self.ring.extend(texts)
        if self._echo is not None:
            for line in texts:
                self._echo(line)
        present = [entry for entry in self._patterns if entry[1] in text]
        if present and self._on_match is not None:
            for line in texts:
                for kind, pattern in present:
                    if pattern in line:
                        self._on_match(kind, pattern, line)

    def _cut(self, line: bytes) -> bytes:
        """A line that is too long, without a part of a secret at its end."""
        text = line.decode("utf-8", "replace")
        masked = self._mask(text) if self._mask is not None else text
        cut_before = len(line) == MAX_LINE_BYTES + MAX_SECRET_BYTES
        if self._mask is not None and cut_before and masked != text:
            # It is shorter now, and the splitter may have cut through a secret at its end. So does
            # this, but at another place: what both begin with holds nothing of one.
            other = self._mask(line[:-MAX_SECRET_BYTES].decode("utf-8", "replace"))
            masked = os.path.commonprefix((masked, other))  # noqa: RUF071 - they are no paths
        return masked.encode()[:MAX_LINE_BYTES]


class Kept:
    """A stream for ``logging``: our own lines, masked and bounded already, into file and ring."""

    def __init__(self, path: str) -> None:
        self.ring = Ring()
        self._file = RotatingFile(path)

    @property
    def dropped_bytes(self) -> int:
        """What the disk refused."""
        return self._file.dropped_bytes

    @property
    def error(self) -> str:
        """Why; "" when the latest write went well."""
        return self._file.error

    def write(self, text: str) -> int:
        """Take a record's lines. Never raises OSError."""
        self._file.write(text.encode("utf-8", "replace"))
        self.ring.extend(text.rstrip("\n").split("\n"))
        return len(text)

    def flush(self) -> None:
        """Nothing: each line is written at once."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Capture(LineSink):
    """Drains one child's pipe. ``fd`` is non-blocking and belongs to the capture.

    The caller watches ``fd``, calls ``on_readable`` at each wake-up, and stops watching before it
    calls ``close``.
    """

    def __init__(self, fd: int, **places: Unpack[Places]) -> None:
        super().__init__(**places)
        self.fd = fd
        self.closed = False
        self._ended = False

    def on_readable(self) -> bool:
        """Read a little; False when the pipe has ended (every writer is gone)."""
        self._read(READS_AT_ONCE)
        return not self._ended

    def close(self) -> None:
        """Take what lies in the pipe, and close it, whoever still holds its other end."""
        if self.closed:
            return
        self._read(DRAIN_READS)
        self.end()
        self.closed = True
        os.close(self.fd)

    def _read(self, times: int) -> None:
        for _ in range(times):
            if self.closed or self._ended:
                return
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return
            self._ended = not data
            self.feed(data)


class Tail(LineSink):
    """Follows a log file that something else writes, across truncation and rotation.

    Args:
        path: need not exist yet; a file that appears later is read from its start.
        from_start: read what already lies in it, too.
    """

    def __init__(self, path: str, *, from_start: bool = False, **places: Unpack[Places]) -> None:
        super().__init__(**places)
        self.path = path
        #: why it cannot be read, for people; "" when it can, or does not exist yet
        self.error = ""
        self._warned = ""  # of what went wrong last: it is said once
        self._skip_old = not from_start
        self._fd = -1
        self._position = 0
        self._replaced = False  # seen at the previous poll; its writer may have been late

    def poll(self) -> bool:
        """Read a little; True when more is waiting. To be called a few times a second."""
        try:
            if self._fd < 0 and not self._open():
                return False
            for _ in range(READS_AT_ONCE):
                data = os.read(self._fd, READ_BYTES)
                if not data:
                    self._look_around()
                    return False
                self._position += len(data)
                self.feed(data)
        except OSError as error:
            self.error = f"{self.path}: {error.strerror}"
            if self.error != self._warned:
                self._warned = self.error
                _log.warning("%s", self.error)
            self.close()
            return False
        return True

    def close(self) -> None:
        """Let go of the file."""
        self.end()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> bool:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self._skip_old = False
            return False
        self.error = ""
        skip = self._skip_old and stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._position = os.lseek(self._fd, 0, os.SEEK_END) if skip else 0
        self._skip_old = False
        return True

    def _look_around(self) -> None:
        """At the end of the file: was it cut, or is another one there by now?"""
        ours = os.fstat(self._fd)
        if ours.st_size < self._position:
            self.end()
            self._position = os.lseek(self._fd, 0, os.SEEK_SET)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return
        replaced = not os.path.samestat(ours, there)
        if replaced and self._replaced:
            self.close()
        self._replaced = replaced and not self._replaced
