"""The memory of used nonces as a file of the state directory, shared by every ingress process.

Responsible for the file, its mapping and the lock over it. It outlives the processes and the run,
so a request that was seen before a restart is known after it. Its room on the disk is taken when it
is made: a disk that fills up later takes nothing away. Law: where it cannot be asked in time,
nothing is new.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
from typing import cast

from ingress.nonces import SIZE_BYTES, Nonces, Verdict

NAME = "nonces"
#: Seconds that another process may hold the lock (it does for some microseconds, unless stopped).
LOCK_PATIENCE_S = 0.02
_LOCK_POLL_S = 0.0005
_log = logging.getLogger("ingress")


class NonceFile:
    """The file in ``directory``, made on demand; only this user may open it."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, NAME)
        self._fd = -1  #: open for as long as the process lives
        self._nonces: Nonces | None = None
        self._said = ""
        self._tried_at = 0
        self._open(-1)  # now, because room on the disk takes a moment

    def take(self, key: bytes, counts_until: int, now: int) -> Verdict:
        """``Nonces.take``; UNKNOWN where the file cannot be had, or is locked for too long."""
        nonces = self._nonces or self._open(now)
        if nonces is None or not self._lock():
            return Verdict.UNKNOWN
        try:
            return nonces.take(key, counts_until, now)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        end = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= end:
                    return False
                time.sleep(_LOCK_POLL_S)
            else:
                return True

    def _open(self, now: int) -> Nonces | None:
        """Have the file, tried once a second."""
        if now == self._tried_at:
            return None
        self._tried_at = now
        fd = -1
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            if os.fstat(fd).st_size < SIZE_BYTES:
                os.posix_fallocate(fd, 0, SIZE_BYTES)
            memory = mmap.mmap(fd, SIZE_BYTES)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            text = f"used nonces cannot be kept in {self._path}: {error.strerror}"
            if text != self._said:
                self._said = text
                _log.error("%s; requests that clients sign are refused", text)
            return None
        self._fd = fd
        self._nonces = Nonces(cast(bytearray, memory))  # it is used like one
        return self._nonces
