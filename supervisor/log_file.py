"""One log file that rotates, and that never fails its writer.

Law: the files together hold at most (``keep`` + 1) × ``max_bytes``, plus one write. A write that
the disk refuses (full, gone, not allowed) is dropped and counted; the next one tries again. A file
that somebody removed is made again.

A leaf. Writing to a regular file is taken not to block.
"""

from __future__ import annotations

import contextlib
import os
import stat


def make_private(directory: str) -> None:
    """Make ``directory`` and what is missing above it, for this user alone. Raises OSError.

    Logs and accounts are; where their directory was removed, whoever writes first makes it again.
    """
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    if parent != directory:
        make_private(parent)
    with contextlib.suppress(FileExistsError):  # a file of that name: the next step will say so
        os.mkdir(directory, 0o700)


class RotatingFile:
    """Lines go to ``path``; older ones to ``path.1`` … ``path.<keep>``."""

    def __init__(self, path: str, max_bytes: int = 16 * 2**20, keep: int = 2) -> None:
        self.path = path
        #: bytes that the disk refused
        self.dropped_bytes = 0
        #: why, for people; "" when the latest write went well
        self.error = ""
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size_bytes = 0
        self._rotates = False
        self._torn = False  # the latest write ended within a line

    def write(self, data: bytes) -> None:
        """Append whole lines. Never raises OSError."""
        try:
            if (
                self._rotates
                and self._size_bytes
                and self._size_bytes + len(data) > self._max_bytes
            ):
                self._rotate()
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
                self.close()  # removed: nobody could read what goes there
            if self._fd < 0:
                self._open()
            if self._torn:
                os.write(self._fd, b"\n")
                self._torn = False
            written = os.write(self._fd, data)
        except OSError as error:
            self.error = f"{self.path}: {error.strerror}"
            self.dropped_bytes += len(data)
            return
        self._size_bytes += written
        self.dropped_bytes += len(data) - written
        self._torn = written < len(data)
        self.error = f"{self.path}: disk full" if self._torn else ""

    def close(self) -> None:
        """Close it; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        make_private(os.path.dirname(os.path.abspath(self.path)))
        # O_NONBLOCK: should it be a pipe, it must not block us.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o644)
        status = os.fstat(self._fd)
        self._size_bytes = status.st_size
        self._rotates = stat.S_ISREG(status.st_mode)  # never rename a /dev/stderr

    def _rotate(self) -> None:
        for number in range(self._keep, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number - 1}", f"{self.path}.{number}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, f"{self.path}.1")
        self.close()
        self._size_bytes = 0  # should the new one not open, the old ones are not moved on
