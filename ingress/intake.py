"""Where the body of a request goes while it arrives, and who has counted it.

Law: a body of announced length has its room, in memory or on the disk, before a byte of it is read,
or the request is refused with a typed 503; one in chunks is cut off where it finds none. Whatever a
connection has counted it gives back when its exchange ends.

Between ``connection.py`` (bytes come, exchanges end), ``budget.py`` (the rules) and ``spool.py``
(the files).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from ingress.budget import SOFT_LARGE_BYTES, Budget
from ingress.errors import ErrorKind, Problem
from ingress.exchange import Exchange
from ingress.framing import Framer
from ingress.spool import RETRY_S, Spool, SpoolFile, no_room
from supervisor.settings import LimitSettings

#: Heads up to this size are part of what a connection costs anyway.
SMALL_HEAD_BYTES = 4096

#: Makes the spool, which counts what waits for the disk.
MakeSpool = Callable[[Budget], Spool]


class Holder(Protocol):
    """Who holds parts of a request in memory: a connection."""

    counted_bytes: int  #: that it has counted, and gives back when its exchange ends


class Intake:
    """That of one server.

    ``spool``: None: every body is held in memory.
    """

    __slots__ = ("_spool", "budget")

    def __init__(self, limits: LimitSettings, spool: MakeSpool | None) -> None:
        disk_bytes = limits.spool_bytes if spool is not None else 0
        self.budget = Budget(limits.buffered_bytes, disk_bytes, limits.large_bytes)
        self._spool = spool(self.budget) if spool is not None else None

    def close(self) -> None:
        """Nothing more comes."""
        if self._spool is not None:
            self._spool.close()

    def count(self, holder: Holder, size_bytes: int) -> None:
        """It holds so many bytes in memory, in place of what it counts. Raises Problem."""
        if not self.budget.take(size_bytes - holder.counted_bytes):
            raise no_memory()
        holder.counted_bytes = size_bytes

    def begin(self, holder: Holder, framer: Framer[Exchange]) -> None:
        """A body follows the head that was read: give it its room. Raises Problem (memory)."""
        size, head = framer.request.content_length, framer.head_bytes
        held = head if head > SMALL_HEAD_BYTES else 0
        if size >= SOFT_LARGE_BYTES and self.budget.large(size):
            self._to_disk(framer, size)
        elif size > 0:
            held += size
        self.count(holder, held)

    def grow(self, holder: Holder, framer: Framer[Exchange]) -> None:
        """More of a body in chunks has come. Raises Problem (memory)."""
        size, file = framer.body_bytes, framer.request.file
        if file is None and self.budget.large(size):
            self.count(holder, _large_head(framer))
            file = self._to_disk(framer, 0)
        if file is None:
            self.count(holder, _large_head(framer) + size)
        elif self.budget.take_disk(size - file.counted_bytes):
            file.counted_bytes = size
        else:
            raise no_memory()

    def late(self, exchange: Exchange) -> Problem:
        """It has not arrived in time: whose fault that is."""
        if exchange.file is not None and exchange.file.waiting_bytes:
            return no_room("it is too slow")
        return Problem(ErrorKind.TIMEOUT_READING)

    def drop(self, exchange: Exchange) -> None:
        """Its file, if it has one, is needed no more."""
        file = exchange.file
        if file is not None:
            exchange.file = None
            file.remove(partial(self.budget.take_disk, -file.counted_bytes))

    def _to_disk(self, framer: Framer[Exchange], size_bytes: int) -> SpoolFile:
        file = self._open(size_bytes)
        framer.request.file = file
        framer.spool(file)
        return file

    def _open(self, size_bytes: int) -> SpoolFile:
        if self._spool is None or not self.budget.take_disk(size_bytes):
            raise no_memory()
        try:
            file = self._spool.open(size_bytes)
        except Problem:
            self.budget.take_disk(-size_bytes)
            raise
        file.counted_bytes = size_bytes
        return file


def _large_head(framer: Framer[Exchange]) -> int:
    return framer.head_bytes if framer.head_bytes > SMALL_HEAD_BYTES else 0


def no_memory() -> Problem:
    """The problem of a request that finds no room."""
    return Problem(ErrorKind.MEMORY, retry_after_s=RETRY_S)
