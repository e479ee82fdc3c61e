"""Request bodies in files: written as they arrive, read again by whoever sends them on.

Law: a file belongs to one request of one life of one process, and goes with it; what an earlier
life of the same process has left goes when the next one begins. Names are never used twice. Room
for a body of known length is looked for before its first byte is read, so a full disk is a refusal
and not a broken upload, unless somebody else fills it meanwhile.

A file is written and mapped, never held: its pages are the kernel's to take back.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import logging
import math
import mmap
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import msgspec

from backend_adapter.messages import FilePart
from ingress.budget import Budget
from ingress.errors import ErrorKind, Problem
from supervisor import private_dir

#: After which a client may try again that found no room.
RETRY_S = 1.0
#: Bytes of one body that may wait for the disk before its client is read no further …
BEHIND_BYTES = 2**19
#: … and of all bodies together, before that is so for each of them.
ALL_BEHIND_BYTES = 8 * 2**20
#: Pieces shorter than this are joined as they come, bytes.
COALESCE_BYTES = 16_384
#: Bytes of bodies that are read, which takes its time, before the loop gets its turn.
TURN_BYTES = 4 * 2**20
#: Pieces that one write takes (IOV_MAX).
MAX_PIECES = 1024
_log = logging.getLogger("ingress")

#: What a body that has arrived looks like.
Bytes = bytes | mmap.mmap


class SpoolFile:
    """One body, while it arrives and until its request has ended.

    All of its methods belong to the loop but ``_carry_out``, which the spool's thread calls. What
    comes while the thread has a batch of pieces is gathered for the next, so that a piece is never
    touched from both sides, and small ones are joined.

    Attributes:
        size_bytes: of the body, so far.
        waiting_bytes: of them, those that are not written yet, and in memory.
        counted_bytes: what its owner has counted for it on the disk.
        problem: why it cannot be used; None: it can.
        moved: called when bytes were written, or could not be.
    """

    __slots__ = (
        "_batch", "_complete", "_fd", "_path", "_pieces", "_promised", "_queued", "_removed",
        "_spool", "counted_bytes", "moved", "problem", "size_bytes", "waiting_bytes",
    )  # fmt: skip

    def __init__(self, spool: Spool, path: str, promised_bytes: int) -> None:
        self._spool = spool
        self._path = path
        self._fd = -1
        self._pieces: list[bytes | bytearray] = []
        self._batch: list[bytes | bytearray] = []  #: the thread's, while it is queued
        self._promised = promised_bytes
        self._complete = False
        self._queued = False
        self._removed: Callable[[], object] | None = None
        self.size_bytes = self.waiting_bytes = self.counted_bytes = 0
        self.problem: Problem | None = None
        self.moved: Callable[[], None] = _nobody

    def write(self, piece: bytes | bytearray) -> None:
        """Append, soon. Raises Problem (memory): so much waits for the disk that it must not."""
        self._spool.wait(len(piece))
        gather(self._pieces, piece)
        self.size_bytes += len(piece)
        self.waiting_bytes += len(piece)
        self._enqueue()

    @property
    def behind(self) -> bool:
        """The disk is slower than the client: read no more of it for now."""
        return self.waiting_bytes > BEHIND_BYTES or (
            self.waiting_bytes > 0 and self._spool.waiting_bytes > ALL_BEHIND_BYTES
        )

    def map(self) -> mmap.mmap:
        """The whole body, which is not empty and written. Raises Problem (memory)."""
        try:
            return mmap.mmap(self._fd, self.size_bytes, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise no_room(str(error)) from None

    def whole(self) -> FilePart:
        """All of it, for another process."""
        return FilePart(self._path, 0, self.size_bytes)

    def part(self, mapped: mmap.mmap, view: object) -> FilePart:
        """What ``view`` shows of the body that was mapped."""
        address, size = _place(view)
        return FilePart(self._path, address - _place(mapped)[0], size)

    def finish(self) -> None:
        """All of it has come: ``moved`` is called when it is written, and its owner may read it."""
        self._complete = True
        if not self.waiting_bytes:
            self._spool.in_turn(self)

    def remove(self, removed: Callable[[], object]) -> None:
        """It is needed no more; who reads it already reads on. ``removed``: called when it is."""
        self.moved = _nobody
        self._complete = False
        self._removed = removed
        self._enqueue()

    def _enqueue(self) -> None:
        if not self._queued:
            self._queued = True
            self._batch, self._pieces = self._pieces, []
            self._spool.queue.put(self)

    def _carry_out(self) -> tuple[int, str]:
        """Write what waits, or remove the file; returns the bytes let go of, and a fault."""
        gone = self._removed is not None
        pieces, self._batch = self._batch, []
        size = sum(map(len, pieces))
        try:
            if gone:
                self._unlink()
                return size, ""
            if self._fd < 0:
                self._fd = self._spool.create(self._path)
            views = [memoryview(piece) for piece in pieces]
            while views:
                written = os.writev(self._fd, views[:MAX_PIECES])
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if written:
                    views[0] = views[0][written:]
        except OSError as error:
            return size, error.strerror or "it refuses"
        return size, ""

    def _unlink(self) -> None:
        fd, self._fd = self._fd, -1  # a close that fails has closed it: it is never repeated
        if fd >= 0:
            try:
                os.close(fd)
            finally:
                with suppress(FileNotFoundError):  # somebody has removed it
                    os.unlink(self._path)

    def _carried_out(self, size: int, fault: str) -> None:
        self._queued = False
        self.waiting_bytes -= size
        kept = min(size, self._promised)
        self._promised -= kept
        self._spool.settled(size, kept)
        if fault and self.problem is None:
            self.problem = no_room(fault)
            self._spool.say(f"no large bodies: {fault}")
        if self._removed is not None and self._fd < 0 and not self._pieces:
            self._spool.settled(0, self._promised)
            removed, self._removed = self._removed, None
            removed()
        elif self._pieces or self._removed is not None:
            self._enqueue()
        if self._complete and not self.waiting_bytes:
            self._spool.in_turn(self)
        else:
            self.moved()


class Spool:
    """The files of one process, and the thread that waits for the disk.

    A disk that is busy with other things may take seconds for an open, a write or an unlink, and
    the loop must not stand still meanwhile.

    Args:
        directory: of the run; made when it is needed.
        name: of the process; what begins so is its own.
        loop: where its callers live.
        budget: what waits for the disk counts against its memory.
    """

    def __init__(
        self, directory: str, name: str, loop: asyncio.AbstractEventLoop, budget: Budget
    ) -> None:
        self._directory = directory
        self._name = name
        self._loop = loop
        self._budget = budget
        self._prefix = os.path.join(directory, f"{name}.{secrets.token_hex(4)}.")
        self._numbers = itertools.count()
        self._promised_bytes = 0  #: announced, and not written yet
        self._said = ""
        self.queue: SimpleQueue[SpoolFile | None] = SimpleQueue()
        self.waiting_bytes = 0  #: of all files
        self._turns: deque[SpoolFile] = deque()
        self._thread = threading.Thread(target=self._main, name="spool", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, once it has done what it was told."""
        self.queue.put(None)

    def open(self, size_bytes: int) -> SpoolFile:
        """A new file for a body of so many bytes; 0: how many is not known.

        Room is looked for and not allocated: a file that is gone before the system has written it
        costs the disk nothing, while taking and freeing blocks makes some file systems slow.

        Raises:
            Problem: memory; the disk has no room.
        """
        if self._free_bytes() < size_bytes + self._promised_bytes:
            self.say(f"no room for a large body in {self._directory}")
            raise no_room("it is full")
        self._promised_bytes += size_bytes
        return SpoolFile(self, f"{self._prefix}{next(self._numbers)}", size_bytes)

    def _free_bytes(self) -> float:
        place = self._directory
        while place != os.path.dirname(place):  # it is made when it is needed
            with suppress(OSError):
                disk = os.statvfs(place)
                return disk.f_bavail * disk.f_frsize
            place = os.path.dirname(place)
        return math.inf

    def create(self, path: str) -> int:
        """Thread: a new file's descriptor. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            private_dir.make(self._directory)
            fd = os.open(path, flags, 0o600)
        try:
            if os.lstat(self._directory).st_uid != os.fstat(fd).st_uid:
                # whoever made the directory could put another body in a file's place
                raise PermissionError(errno.EPERM, "its directory is somebody else's")
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(path)
            raise
        return fd

    def wait(self, size_bytes: int) -> None:
        """So many bytes wait for the disk. Raises Problem (memory): they are too many."""
        if not self._budget.take(size_bytes):
            raise no_room("it is too slow for what comes")
        self.waiting_bytes += size_bytes

    def settled(self, size_bytes: int, promised_bytes: int) -> None:
        """They do no more; and these are announced no more."""
        self._budget.take(-size_bytes)
        self.waiting_bytes -= size_bytes
        self._promised_bytes -= promised_bytes

    def say(self, text: str) -> None:
        """Log it, unless that was said last."""
        if text != self._said:
            self._said = text
            _log.error("%s (limits.spool_dir)", text)

    def in_turn(self, file: SpoolFile) -> None:
        """Call its ``moved``, whose owner reads all of it, when the loop has had its own turn."""
        self._turns.append(file)
        if len(self._turns) == 1:
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        size = 0
        try:
            while self._turns and size < TURN_BYTES:
                size += self._turns[0].size_bytes
                try:
                    self._turns[0].moved()
                finally:
                    self._turns.popleft()
        finally:
            if self._turns:
                self._loop.call_soon(self._next_turn)

    def _sweep(self) -> None:
        """Remove what an earlier life of this process has left."""
        with suppress(OSError):
            for name in os.listdir(self._directory):
                path = os.path.join(self._directory, name)
                if name.startswith(f"{self._name}.") and not path.startswith(self._prefix):
                    with suppress(OSError):
                        os.unlink(path)

    def _main(self) -> None:
        self._sweep()
        while (file := self.queue.get()) is not None:
            outcome = file._carry_out()
            try:
                self._loop.call_soon_threadsafe(file._carried_out, *outcome)
            except RuntimeError:
                return  # the loop is closed: the process ends
            del file  # a thread that waits holds nobody's body


def gather(pieces: list[bytes | bytearray], piece: bytes | bytearray) -> None:
    """Append it; small ones are joined, so that an object is worth its bytes."""
    if not pieces or len(pieces[-1]) >= COALESCE_BYTES:
        pieces.append(piece)
        return
    last = pieces[-1]
    if type(last) is not bytearray:
        pieces[-1] = last = bytearray(last)
    last += piece


def _nobody() -> None:
    """Nobody waits."""


def whole_of(body: Bytes, file: SpoolFile | None) -> tuple[bytes, FilePart | None]:
    """A whole body as a message carries it: as bytes, or as a file's part."""
    return (b"", file.whole()) if isinstance(body, mmap.mmap) and file else (bytes(body), None)


def payload_of(
    payload: msgspec.Raw, body: Bytes, file: SpoolFile | None
) -> tuple[bytes, FilePart | None]:
    """The same of a part of it, which ``payload`` shows."""
    if file is None or not isinstance(body, mmap.mmap):
        return bytes(payload), None
    return b"", file.part(body, payload)


def no_room(reason: str) -> Problem:
    """The problem of a body that the disk does not take."""
    text = f"the worker has no room on its disk for this body ({reason}); try again later"
    return Problem(ErrorKind.MEMORY, text, RETRY_S)


class _View(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _place(view: object) -> tuple[int, int]:
    """Address and length of what an object shows: a decoder says what it found, not where."""
    found = _View()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
    place = found.buf or 0, found.len
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
    return place
