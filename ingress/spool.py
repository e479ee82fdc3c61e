"""Request bodies in files: written as they arrive, read again by whoever sends them on.

Law: a file belongs to one request of one life of one process, and goes with it; what an earlier
life of the same process has left goes when the next one begins. Names are never used twice. Room
for a body of known length is taken before its first byte is read, so a full disk is a refusal and
not a broken upload.

A file is written and mapped, never held: its pages are the kernel's to take back.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import mmap
import os
import secrets
from contextlib import suppress

import msgspec

from backend_adapter.messages import FilePart
from ingress.errors import ErrorKind, Problem

#: After which a client may try again that found no room.
RETRY_S = 1.0
_log = logging.getLogger("ingress")

#: What a body that has arrived looks like.
Bytes = bytes | mmap.mmap


class SpoolFile:
    """One body, while it arrives and until its request has ended.

    Attributes:
        size_bytes: written so far.
        counted_bytes: what its owner has counted for it.
    """

    __slots__ = ("_fd", "_path", "counted_bytes", "size_bytes")

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.size_bytes = 0
        self.counted_bytes = 0

    def write(self, piece: bytes | bytearray) -> None:
        """Append. Raises Problem (memory): the disk refuses it."""
        view = memoryview(piece)
        try:
            while view:
                written = os.write(self._fd, view)
                self.size_bytes += written
                view = view[written:]
        except OSError as error:
            raise no_room(error.strerror or "") from None

    def map(self) -> mmap.mmap:
        """The whole body, which is not empty, without holding it. Raises Problem (memory)."""
        try:
            return mmap.mmap(self._fd, self.size_bytes, prot=mmap.PROT_READ)
        except OSError as error:
            raise no_room(error.strerror or "") from None

    def whole(self) -> FilePart:
        """All of it, for another process."""
        return FilePart(self._path, 0, self.size_bytes)

    def part(self, mapped: mmap.mmap, view: object) -> FilePart:
        """What ``view`` shows of the body that was mapped."""
        address, size = _place(view)
        return FilePart(self._path, address - _place(mapped)[0], size)

    def remove(self) -> None:
        """It is needed no more; who reads it already reads on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(OSError):
                os.unlink(self._path)


class Spool:
    """The files of one process.

    Args:
        directory: of the run; made when it is needed.
        name: of the process; what begins so is its own.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._name = name
        self._prefix = os.path.join(directory, f"{name}.{secrets.token_hex(4)}.")
        self._numbers = itertools.count()
        self._said = ""

    def sweep(self) -> None:
        """Remove what an earlier life of this process has left."""
        with suppress(OSError):
            for name in os.listdir(self._directory):
                if name.startswith(f"{self._name}."):
                    with suppress(OSError):
                        os.unlink(os.path.join(self._directory, name))

    def open(self, size_bytes: int) -> SpoolFile:
        """A new file with room for so many bytes; 0: how many is not known.

        Raises:
            Problem: memory; the disk has no room, or takes no files.
        """
        path = f"{self._prefix}{next(self._numbers)}"
        try:
            file = SpoolFile(path, self._create(path))
        except OSError as error:
            self._say(f"no file for a large body: {error}")
            raise no_room(error.strerror or "") from None
        try:
            if size_bytes:
                os.posix_fallocate(file._fd, 0, size_bytes)
        except OSError as error:
            file.remove()
            self._say(f"no room for a large body in {self._directory}: {error.strerror}")
            raise no_room(error.strerror or "") from None
        self._said = ""
        return file

    def _create(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.error("%s (limits.spool_dir)", text)


def whole_of(body: Bytes, file: SpoolFile | None) -> tuple[bytes, FilePart | None]:
    """A whole body as a message carries it: as bytes, or as a file's part."""
    return (b"", file.whole()) if isinstance(body, mmap.mmap) and file else (bytes(body), None)


def payload_of(
    payload: msgspec.Raw, body: Bytes, file: SpoolFile | None
) -> tuple[bytes, FilePart | None]:
    """The same of a part of it, which ``payload`` shows."""
    if isinstance(body, mmap.mmap) and file is not None:
        return b"", file.part(body, payload)
    return bytes(payload), None


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
