"""Pure: how many bytes of requests one ingress process may hold, and where a body belongs.

Two pools, memory and disk, each with a hard limit; ``docs/memory.md`` says what follows for the
worker as a whole. Bodies longer than ``large_bytes`` belong on the disk, always: a file costs a
process nothing, however often the request is sent again. Over the soft limit, the half of the
memory, bodies of ``SOFT_LARGE_BYTES`` do as well, so that what is left is for the small ones.

Law: what is taken is given back by whoever took it, and neither pool ever holds more than its
limit. This module knows neither requests nor files.
"""

from __future__ import annotations

import msgspec

from supervisor.settings import LimitSettings

#: From here on a body is worth a file when memory is short.
SOFT_LARGE_BYTES = 16_384
#: Times its first credit that a client which reads a large answer as it comes is trusted with, once
#: its side has taken so many credits: more than a kernel takes for a program that does not read,
#: unless that asks for it. All of it counts as unread where the client stops.
#: With one credit both sides would wait for each other's word.
MOST_CREDITS, TRUSTED_AFTER = 4, 2


class Budget:
    """The two pools of one process.

    ``memory_bytes``, ``disk_bytes``: the limits; no disk: every body belongs in memory.
    """

    __slots__ = ("_disk_bytes", "_large_bytes", "_memory_bytes", "_soft_bytes", "disk", "memory")

    def __init__(self, memory_bytes: int, disk_bytes: int, large_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._soft_bytes = memory_bytes // 2
        self._disk_bytes = disk_bytes
        self._large_bytes = large_bytes
        self.memory = 0  #: bytes that are held
        self.disk = 0

    def large(self, size_bytes: int) -> bool:
        """A body of this length belongs on the disk, as things stand."""
        if size_bytes > self._large_bytes:
            return self._disk_bytes > 0
        if size_bytes < SOFT_LARGE_BYTES or self.memory + size_bytes <= self._soft_bytes:
            return False
        return self._disk_bytes > 0

    def take(self, more_bytes: int) -> bool:
        """Hold more in memory, or less (below 0, which always succeeds). False: no room."""
        if more_bytes > 0 and self.memory + more_bytes > self._memory_bytes:
            return False
        self.memory += more_bytes
        return True

    def take_disk(self, more_bytes: int) -> bool:
        """The same on the disk."""
        if more_bytes > 0 and self.disk + more_bytes > self._disk_bytes:
            return False
        self.disk += more_bytes
        return True


def share(limits: LimitSettings, processes: int) -> LimitSettings:
    """The limits of each of several processes that share what the worker may hold."""
    return msgspec.structs.replace(
        limits,
        buffered_bytes=limits.buffered_bytes // processes,
        spool_bytes=limits.spool_bytes // processes,
        unsent_bytes=limits.unsent_bytes // processes,
    )
