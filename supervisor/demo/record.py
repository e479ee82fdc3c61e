"""What the engine remembers of everything that was reported to it.

A leaf. Its law: bounded in entries and in bytes, the oldest goes first; what a reader has not seen
yet it finds by the number of the last entry that it has.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

MAX_ENTRIES = 10_000
MAX_BYTES = 32 * 2**20


class Record:
    """One list of entries, numbered by whoever adds them, ascending."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: deque[tuple[int, bytes]] = deque()
        self._bytes = 0

    def add(self, seq: int, entry: dict[str, Any]) -> None:
        """Remember the entry under its number."""
        encoded = msgspec.json.encode({"seq": seq, **entry})
        self._entries.append((seq, encoded))
        self._bytes += len(encoded)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            _, oldest = self._entries.popleft()
            self._bytes -= len(oldest)

    def since(self, seq: int) -> list[msgspec.Raw]:
        """Entries with a greater number, oldest first, as JSON; each has its number in ``seq``."""
        newer = []
        for number, encoded in reversed(self._entries):
            if number <= seq:
                break
            newer.append(msgspec.Raw(encoded))
        newer.reverse()
        return newer
