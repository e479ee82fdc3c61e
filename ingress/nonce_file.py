"""The memory of used nonces as a file of the state directory, shared by every ingress process.

Responsible for the file, its mapping and the lock over it. It outlives the processes and the run,
so a request that was seen before a restart is known after it. Its room on the disk is taken when it
is made: a disk that fills up later takes nothing away. Where somebody removes it, or its directory,
whoever had it makes it again with all that was known (``keep``). Law: where it cannot be asked in
time, nothing is new.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
from contextlib import suppress
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
        self._fd = -1  #: of the present file
        self._nonces: Nonces | None = None
        self._said = ""
        self._tried_at = 0
        self._patience_s = LOCK_PATIENCE_S
        self._open(-1)  # now, because room on the disk takes a moment

    def take(self, key: bytes, counts_until: int, now: int) -> Verdict:
        """``Nonces.take``; UNKNOWN where the file cannot be had, or is locked for too long."""
        nonces = self._there(now)
        if nonces is None:
            return Verdict.UNKNOWN
        if not _lock(self._fd, self._patience_s):
            self._patience_s = 0.0  # who did not let it go will not soon: the loop waits once
            return Verdict.UNKNOWN
        self._patience_s = LOCK_PATIENCE_S
        try:
            return nonces.take(key, counts_until, now)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def keep(self, now: int) -> None:
        """Call now and then: make the file again where it has gone.

        A process that starts before that finds none, and knows nothing.
        """
        self._there(now)

    def _there(self, now: int) -> Nonces | None:
        """What others ask, too; None where it cannot be had."""
        if self._nonces is not None:
            with suppress(OSError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                    return self._nonces
        return self._open(now)

    def _adopted(self, fd: int, nonces: Nonces, now: int) -> bool:
        """The file in place of the one that is gone knows what that one did. False: not yet."""
        if self._nonces is None:
            return True
        if not _lock(fd):
            return False
        try:
            nonces.adopt(self._nonces, now)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(self._fd)
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
            # it is used like one
            nonces = Nonces(cast(bytearray, mmap.mmap(fd, SIZE_BYTES)))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            text = f"used nonces cannot be kept in {self._path}: {error.strerror}"
            if text != self._said:
                self._said = text
                _log.error("%s; requests that clients sign are refused", text)
            return None
        if not self._adopted(fd, nonces, now):
            os.close(fd)
            return None
        self._fd, self._nonces, self._said = fd, nonces, ""
        return nonces


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
