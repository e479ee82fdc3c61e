"""The clients that do not read their answers, and what is held for them.

A stream's credit bounds what one client may leave unread, and this is the bound over all of them:
when it is crossed, who has not read for longest is cut off, until the rest fits. It looks at most
every ``LOOK_EVERY_S`` and only while there are enough slow clients to reach the limit, so it costs
nothing where clients read.

It knows of a connection only what ``Slow`` says.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

LOOK_EVERY_S = 0.02


class Slow(Protocol):
    """A connection that its client does not read."""

    @property
    def unsent_bytes(self) -> int:
        """What is held for it."""

    def abort(self) -> None:
        """Cut it off; it leaves the ``SlowReaders`` sooner or later."""


class SlowReaders:
    """Those of one process.

    ``limit_bytes``: what may be held for all; ``each_bytes``: the most for one.
    """

    __slots__ = ("_each_bytes", "_limit_bytes", "_looking", "_loop", "_slow", "cut")

    def __init__(self, limit_bytes: int, each_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._limit_bytes = limit_bytes
        self._each_bytes = each_bytes
        self._loop = loop
        self._slow: dict[Slow, None] = {}  # who has not read for longest is first
        self._looking = False
        self.cut = 0  #: cut off so far

    @property
    def held_bytes(self) -> int:
        """Unsent bytes of all of them. O(n)."""
        return sum(each.unsent_bytes for each in self._slow)

    def add(self, connection: Slow) -> None:
        """Its client has stopped reading."""
        self._slow[connection] = None
        if not self._looking and len(self._slow) * self._each_bytes > self._limit_bytes:
            self._looking = True
            self._loop.call_later(LOOK_EVERY_S, self._look)

    def discard(self, connection: Slow) -> None:
        """It reads again, or is gone."""
        self._slow.pop(connection, None)

    def _look(self) -> None:
        self._looking = False
        over = self.held_bytes - self._limit_bytes
        for connection in list(self._slow):
            if over <= 0:
                break
            over -= connection.unsent_bytes
            self.cut += 1
            self.discard(connection)
            connection.abort()
        if len(self._slow) * self._each_bytes > self._limit_bytes:
            self._looking = True
            self._loop.call_later(LOOK_EVERY_S, self._look)
