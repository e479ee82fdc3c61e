"""Core files: our own processes leave none, because their memory holds requests and the token.

Law: what we do to ourselves is undone for what is not ours: a model server dumps as if it had been
started without us. A process cannot be made undumpable for good here: then nobody but root could
read in /proc which run it belongs to, and a run could not be swept.

Two measures, because either may be the one that counts (core(5)): a limit of one byte, which also
keeps the kernel from starting a program that takes core files; and a filter, under which a file
that is made all the same has no memory in it. Children inherit both.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_FILTER = "/proc/{}/coredump_filter"
_NOTHING = "0x0"
#: What this process was started with: limits, filter.
_before: tuple[tuple[int, int], str] | None = None


def forbid() -> None:
    """This process, and what it starts, leaves none. Where the system has no such measure, no
    error is raised."""
    global _before
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    path = _FILTER.format("self")
    if _before is None:
        _before = limits, _read(path)
    hard = limits[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (min(1, hard) if hard >= 0 else 1, hard))
    _write(path, _NOTHING)


def allow(pid: int) -> None:
    """A child of this process may leave one where this process might have."""
    if _before is None:
        return
    limits, kept = _before
    with suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, limits)
    if kept:
        _write(_FILTER.format(pid), kept)


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="ascii") as file:
        return f"0x{file.read().strip()}"
    return ""


def _write(path: str, text: str) -> None:
    with suppress(OSError), open(path, "w", encoding="ascii") as file:
        file.write(text)
