"""The memory of used nonces as a file of the state directory, shared by every ingress process.

Responsible for the file, its mapping and the lock over it. It outlives the processes and the run,
so a request that was seen before a restart is known after it. Its room on the disk is taken when it
is made: a disk that fills up later takes nothing away. Where it is removed, whoever has it open
tells all it knows to the one that bears the name next. Law: where it cannot be asked in time,
nothing is new.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
from contextlib import suppress
from typing import NamedTuple, cast

from ingress.nonces import SIZE_BYTES, Nonces, Verdict

NAME = "nonces"
#: Seconds that another process may hold the lock (it does for some microseconds, unless stopped).
LOCK_PATIENCE_S = 0.02
_LOCK_POLL_S = 0.0005
_log = logging.getLogger("ingress")


class _Opened(NamedTuple):
    """One file; it may have lost its name."""

    fd: int
    memory: mmap.mmap
    nonces: Nonces

    def close(self) -> None:
        self.memory.close()  # it has a descriptor of its own, which would keep the lock
        os.close(self.fd)


class NonceFile:
    """The file in ``directory``, made on demand; only this user may open it."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, NAME)
        self._file: _Opened | None = None  #: open for as long as it bears the name
        self._said = ""
        self._tried_at = 0
        self._patience_s = LOCK_PATIENCE_S
        self._file = self._open(-1)  # now, because room on the disk takes a moment

    def take(self, key: bytes, counts_until: int, now: int) -> Verdict:
        """``Nonces.take``; UNKNOWN where the file cannot be had, or is locked for too long."""
        file = self._lock(now)
        if file is None:
            return Verdict.UNKNOWN
        try:
            return file.nonces.take(key, counts_until, now)
        finally:
            fcntl.flock(file.fd, fcntl.LOCK_UN)

    def keep(self, now: int) -> None:
        """Call now and then: a file that was removed is made again by one who knows what it held,
        and not by a successor that does not.
        """
        file = self._lock(now)
        if file is not None:
            fcntl.flock(file.fd, fcntl.LOCK_UN)

    def _lock(self, now: int) -> _Opened | None:
        """The file that bears the name, locked."""
        file = self._file = self._file or self._open(now)
        if file is None:
            return None
        if not _lock(file.fd, self._patience_s):
            self._patience_s = 0.0  # who did not let it go will not soon: the loop waits once
            return None
        self._patience_s = LOCK_PATIENCE_S
        size = self._size_in_place(file)
        if size >= SIZE_BYTES:
            return file
        if size >= 0:  # somebody has cut it short: touching what is missing would end the process
            _log.error("%s was cut short: nonces that it held may pass again", self._path)
            file.close()
            file = self._file = self._open(-1)
            return file if file is not None and _lock(file.fd) else None
        return self._move(file, now)

    def _move(self, old: _Opened, now: int) -> _Opened | None:
        """From a locked file whose name is gone to the one that bears it now."""
        new = self._open(now)
        if new is None or not _lock(new.fd, self._patience_s):
            self._patience_s = 0.0
            if new is not None:
                new.close()
            fcntl.flock(old.fd, fcntl.LOCK_UN)
            return None
        new.nonces.learn(old.nonces)
        old.close()  # not before: the next to lock it finds the other one complete
        self._file = new
        return new

    def _size_in_place(self, file: _Opened) -> int:
        """Its size in bytes; -1: its name is gone, or another's."""
        with suppress(OSError):
            named, ours = os.stat(self._path), os.fstat(file.fd)
            if os.path.samestat(named, ours):
                return ours.st_size
        return -1

    def _open(self, now: int) -> _Opened | None:
        """Open or make it; not twice in the same second if that failed."""
        if now == self._tried_at:
            return None
        fd = -1
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(fd).st_size < SIZE_BYTES:
                os.posix_fallocate(fd, 0, SIZE_BYTES)
            memory = mmap.mmap(fd, SIZE_BYTES)
        except OSError as error:
            self._tried_at = now
            if fd >= 0:
                os.close(fd)
            text = f"used nonces cannot be kept in {self._path}: {error.strerror}"
            if text != self._said:
                self._said = text
                _log.error("%s; requests that clients sign are refused", text)
            return None
        return _Opened(fd, memory, Nonces(cast(bytearray, memory)))  # it is used like one


def _lock(fd: int, patience_s: float = LOCK_PATIENCE_S) -> bool:
    """Have it before long, or not at all."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= end:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True
