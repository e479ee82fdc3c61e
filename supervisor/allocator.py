"""Gives memory back to the system that the C library keeps after a flood.

What many small bodies leave behind are holes in its heap, which it keeps for the next ones; on a
machine that a model shares, they are better the system's. It must not know whose memory it is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

#: Between two looks.
TRIM_EVERY_S = 5.0
#: What a process may have grown by without being looked at.
GROWTH_BYTES = 16 * 2**20


class Trimmer:
    """Of this process; what it holds now is what it holds at rest."""

    def __init__(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        self._trim: Callable[[int], int] | None = trim
        self._rest_bytes = resident_bytes()

    def look(self) -> None:
        """Give back what is free, if that may be much. Some milliseconds, mostly none."""
        if self._trim is not None and resident_bytes() > self._rest_bytes + GROWTH_BYTES:
            self._trim(0)


def resident_bytes() -> int:
    """Memory of this process that is resident. 0: not known."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(128).split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0
