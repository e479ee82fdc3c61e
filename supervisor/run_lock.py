"""One run per state directory, and where others find it.

Law: whoever holds the lock of ``run.lock`` is the run; the file itself means nothing. The kernel
drops the lock with the process, so a file left behind by a crash is harmless, and it is never
deleted (a second run could lock a file that has no name any more). Where somebody else removes it,
or its directory, it is made again (``keep``).

The file holds the facts of the run as JSON, for the command line. It must not know what they mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from typing import Any

from supervisor import private_dir

_FILE = "run.lock"
#: A reader holds the lock for microseconds to find out whether anybody does.
_PATIENCE_S = 0.5
_PAUSE_S = 0.01
_MAX_BYTES = 64 * 1024
_log = logging.getLogger("supervisor")


class RunLockError(Exception):
    """The state directory cannot be used; one on another disk may (``worker.state_dir``)."""


class AlreadyRunning(RunLockError):
    """Another worker runs with this state directory."""

    def __init__(self, pid: int, state_dir: str) -> None:
        super().__init__(
            f"a worker already runs (pid {pid or 'unknown'}) with the state directory {state_dir};"
            " stop it, or set worker.state_dir to another directory"
        )
        self.pid = pid
        self.state_dir = state_dir


class RunLock:
    """The lock of one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self._fd = -1
        self._facts: dict[str, Any] = {}
        self._size_bytes = 0
        self._published = False
        self._lost_said = False
        #: ``run_id`` and ``runtime_dir`` of the run before this one, when it was not released
        self.left_behind: dict[str, Any] = {}

    def acquire(self) -> None:
        """Take the lock, or raise AlreadyRunning, or RunLockError when the directory is no good."""
        try:
            fd = _opened(self.state_dir)
        except OSError as error:
            raise RunLockError(
                f"cannot use the state directory {self.state_dir}: {error.strerror};"
                " set worker.state_dir to a directory that can be written"
            ) from error
        end = time.monotonic() + _PATIENCE_S
        while not _try_lock(fd, fcntl.LOCK_EX):
            if time.monotonic() >= end:
                facts = _read(fd)
                os.close(fd)
                raise AlreadyRunning(facts.get("pid", 0), self.state_dir)
            time.sleep(_PAUSE_S)
        self._fd = fd
        self.left_behind = _left(_glance(fd))
        with contextlib.suppress(OSError):  # an odd file: the facts will cover what it holds
            os.ftruncate(fd, 0)  # nobody shall take the facts of an earlier run for ours
        self._size_bytes = os.fstat(fd).st_size
        self.publish(pid=os.getpid(), started_at=time.time(), left=self.left_behind)

    def swept(self) -> None:
        """Nothing of what was ``left_behind`` is left; until now the next start knew of it, too."""
        if self.left_behind:
            self.publish(left={})

    def publish(self, **facts: Any) -> bool:
        """Add facts for others to read; the lock must be held.

        False when the disk refused them, or some of them: say it again later, facts or none.
        """
        self._facts |= facts
        text = json.dumps(self._facts, sort_keys=True).encode()
        # In place, because a rename would part the name from the lock. Blanks cover what was
        # longer, so that no moment shows a shorter file with the end of the old text.
        padded = text.ljust(self._size_bytes)
        try:
            written = os.pwrite(self._fd, padded, 0)
        except OSError:
            written = 0
        self._size_bytes = max(self._size_bytes, written)
        self._published = written == len(padded)
        return self._published

    def keep(self) -> None:
        """Call now and then: publish what the disk refused, and make the file again where it is
        gone; otherwise no command finds this run, and a second one could start beside it.
        """
        try:
            there = os.path.samestat(os.stat(_path(self.state_dir)), os.fstat(self._fd))
        except OSError:
            there = False
        if not there:
            self._make_again()
        elif not self._published:
            self.publish()

    def _make_again(self) -> None:
        try:
            fd = _opened(self.state_dir)
        except OSError as error:
            self._say_lost(f"cannot be made again: {error.strerror}")
            return
        try:
            locked = _try_lock(fd, fcntl.LOCK_EX)
        except RunLockError as error:
            os.close(fd)
            self._say_lost(f"and {error}")
            return
        if not locked:
            holder = _glance(fd).get("pid", 0)
            os.close(fd)
            if holder:  # else somebody who only looked: tried again at the next call
                self._say_lost(f"and another worker (pid {holder}) uses its place")
            return
        os.close(self._fd)
        self._fd, self._size_bytes = fd, os.fstat(fd).st_size
        self._lost_said = False
        _log.warning("the state directory %s had been removed; made again", self.state_dir)
        self.publish()

    def _say_lost(self, what: str) -> None:
        if not self._lost_said:
            self._lost_said = True
            _log.error("the state directory %s was removed, %s", self.state_dir, what)

    def release(self) -> None:
        """Give the lock back; the file stays."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def read_running(state_dir: str) -> dict[str, Any] | None:
    """The facts that the run of this directory has published; None when nothing runs there.

    Raises RunLockError when the lock cannot be looked at.
    """
    try:
        fd = os.open(_path(state_dir), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunLockError(f"cannot look at {_path(state_dir)}: {error.strerror}") from error
    try:
        return None if _try_lock(fd, fcntl.LOCK_SH) else _read(fd)
    finally:
        os.close(fd)


def _opened(state_dir: str) -> int:
    """The file, made where it is missing. Raises OSError."""
    private_dir.make(state_dir)
    return os.open(_path(state_dir), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _path(state_dir: str) -> str:
    return os.path.join(state_dir, _FILE)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunLockError(f"{_FILE} cannot be locked: {error.strerror}") from error
    return True


def _read(fd: int) -> dict[str, Any]:
    """The facts; {} while the holder has not published any.

    A half-written text is read again, and so is that of an earlier holder who was killed: it stands
    there until the new one writes.
    """
    end = time.monotonic() + _PATIENCE_S
    while not _lives((facts := _glance(fd)).get("pid")):
        if time.monotonic() >= end:
            return {}
        time.sleep(_PAUSE_S)
    return facts


def _lives(pid: object) -> bool:
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _left(facts: dict[str, Any]) -> dict[str, Any]:
    """What the last holder says of its own run, else of the one that it was about to sweep."""
    names = ("run_id", "runtime_dir")
    own: dict[str, Any] = {name: facts[name] for name in names if name in facts}
    left = facts.get("left")
    return own or (left if isinstance(left, dict) else {})


def _glance(fd: int) -> dict[str, Any]:
    """The facts, if they are whole at this moment."""
    try:
        facts = json.loads(os.pread(fd, _MAX_BYTES, 0))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
