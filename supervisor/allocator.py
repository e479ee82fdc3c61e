"""What the C library keeps of freed memory: some for the next bodies, not all for ever.

It gives the top of its heap back piece by piece and fetches it again at once, page by page, which
costs a large answer more than its copies do; so it is told to keep a little. What many small bodies
leave behind are holes in its heap, which it would keep for good; on a machine that a model shares,
they are better the system's. It must not know whose memory it is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping

#: Between two looks.
TRIM_EVERY_S = 5.0
#: What a process may have grown by without being looked at.
GROWTH_BYTES = 16 * 2**20
#: Freed memory that is kept, of each of its heaps, and what is large enough for pages of its own.
KEPT_BYTES, LARGE_BYTES = 4 * 2**20, 2**21
#: Names of both for mallopt (glibc, malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_some(environ: Mapping[str, str]) -> None:
    """Have the C library keep ``KEPT_BYTES``, unless the environment tells it what to do."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    told = any(name in environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"))
    if mallopt is not None and not told:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


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
