"""The accounts of one producer that the reporter has not confirmed, where a successor finds them.

Each batch is written here before it is sent, so that what a process has told or was about to tell
outlives it, even where the reporter was away. Laws: a batch is read whole or not at all; nothing of
an earlier life is left in the file once a later one's batches have been sent, or the reporter would
take the dead for the living.

The file lies beside the events socket, in the run's own directory, and is not forced to the disk:
it outlives processes, all of a run's too (``inheritance.py``), not a power cut. What cannot be
written costs only this. Bound: ``MAX_BYTES`` and one batch; beyond, what was confirmed meanwhile is
left out.

It must not know what is accounted, nor when it is sent.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from reporter.messages import Events
from supervisor.run_dir import ACCOUNTS_PREFIX

MAX_BYTES = 8 * 2**20
_SIZE = struct.Struct("<I")
_decode = msgspec.msgpack.Decoder(Events).decode
_log = logging.getLogger("reporter")


class Daybook:
    """The file.

    Args:
        address: of the events socket, ``ipc://…``.
        name: the producer's.
    """

    def __init__(self, address: str, name: str) -> None:
        directory = os.path.dirname(address.removeprefix("ipc://"))
        self._path = os.path.join(directory, f"{ACCOUNTS_PREFIX}{name}")
        self._fd = -1
        self._size = 0
        self._torn = False  #: something could not be written: nothing more until it is made anew

    def open(self) -> list[Events]:
        """Open it; what the life before this one has left, oldest first."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._size = os.fstat(self._fd).st_size
            return _batches(os.pread(self._fd, self._size, 0))
        except OSError as error:
            self._failed(error)
            return []

    @property
    def full(self) -> bool:
        """It is time to write it anew."""
        return self._size > MAX_BYTES

    def append(self, events: Events) -> None:
        """Add a batch."""
        if self._fd < 0 or self._torn:
            return
        frame = _frame(events)
        try:
            written = os.write(self._fd, frame)
        except OSError as error:
            self._failed(error)
            return
        self._size += written
        if written < len(frame):
            self._failed(OSError(0, "the disk is full"))

    def clear(self) -> None:
        """Everything is confirmed."""
        if self._fd >= 0 and (self._size or self._torn):
            try:
                os.ftruncate(self._fd, 0)
            except OSError as error:
                self._failed(error)
                return
            self._size, self._torn = 0, False

    def rewrite(self, batches: Iterable[Events]) -> None:
        """Hold these and nothing else; whole, or as it was."""
        if self._fd < 0:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        data = b"".join(map(_frame, batches))
        try:
            fd = os.open(f"{self._path}.new", flags, 0o600)
            try:
                if os.write(fd, data) < len(data):
                    raise OSError(0, "the disk is full")
                os.replace(f"{self._path}.new", self._path)
            except OSError:
                os.close(fd)
                os.unlink(f"{self._path}.new")
                raise
        except OSError as error:
            self._failed(error)
            self.clear()  # better nothing than what must not be sent again
            return
        os.close(self._fd)
        self._fd, self._size, self._torn = fd, len(data), False

    def close(self) -> None:
        """Let it go; it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed(self, error: OSError) -> None:
        if not self._torn:
            _log.warning("accounts would not survive a crash now: %s", error.strerror)
        self._torn = True


def read(path: Path) -> list[Events]:
    """What such a file holds, oldest first; of one that is too large, the beginning.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _batches(file.read(4 * MAX_BYTES))


def _frame(events: Events) -> bytes:
    data = msgspec.msgpack.encode(events)
    return _SIZE.pack(len(data)) + data


def _batches(data: bytes) -> list[Events]:
    """Those that are whole: the process may have died while it wrote the last one."""
    batches, at = [], 0
    while at + _SIZE.size <= len(data):
        (size,) = _SIZE.unpack_from(data, at)
        at += _SIZE.size
        if at + size > len(data):
            break
        with suppress(msgspec.MsgspecError, ValueError):  # the latter: text that is not UTF-8
            batches.append(_decode(data[at : at + size]))
        at += size
    return batches
