"""Secrets that every worker of the tests is given, and the search for them in all that it leaves.

Whatever a test does to its worker (freezes it, fills its disk, lets it crash until it is given up),
none of these may stand in what it printed, in its logs or in its state directory. They hold one
text of letters and digits, which no quoting writes differently.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

#: What is read of a file: so much of its beginning, and so much of its end.
PART_BYTES = 4 * 2**20
#: Files of a state directory that are read.
MAX_FILES = 1000
#: Its directory of request bodies: they are the clients', and may be large.
_SPOOL = "spool"
_AROUND_BYTES = 120


class Planted:
    """One value for each of ``variables``, as ``environ``."""

    def __init__(self, *variables: str) -> None:
        core = secrets.token_hex(12)
        self.environ = {name: f"{name.lower()}/+{core}" for name in variables}
        raw = core.encode()
        #: each half of it, and the whole in base64, wherever its first byte falls
        self._forms = [raw[:12], raw[12:], *(_base64(raw, before) for before in range(3))]

    def assert_absent(self, *places: Path) -> None:
        """Raise AssertionError if one stands in a file, or in a file below a directory; name it."""
        found = [each for place in places for path in _files(place) for each in self._in(path)]
        assert not found, "a planted secret came out:\n" + "\n".join(found)

    def assert_absent_in(self, text: str, what: str) -> None:
        """The same of a text that was printed."""
        found = self._leaks(what, text.encode(errors="replace"))
        assert not found, "a planted secret came out:\n" + "\n".join(found)

    def _in(self, path: Path) -> list[str]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # it has gone meanwhile
            return []
        with os.fdopen(fd, "rb") as file:
            told = os.fstat(fd)
            if not stat.S_ISREG(told.st_mode):
                return []
            content = file.read(PART_BYTES)
            if told.st_size > PART_BYTES:
                file.seek(max(PART_BYTES, told.st_size - PART_BYTES))
                content += file.read(PART_BYTES)
        return self._leaks(str(path), content)

    def _leaks(self, what: str, content: bytes) -> list[str]:
        for form in self._forms:
            at = content.find(form)
            if at >= 0:
                around = content[max(0, at - _AROUND_BYTES) : at + len(form) + _AROUND_BYTES]
                return [f"{what}: {around!r}"]
        return []


def _base64(raw: bytes, before: int) -> bytes:
    """What stands in the base64 of a text that has it behind ``before`` bytes (modulo 3)."""
    return base64.b64encode(bytes(before) + raw)[4 if before else 0 : -4]


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    left = MAX_FILES
    for directory, below, names in os.walk(place):
        if _SPOOL in below:
            below.remove(_SPOOL)
        for name in names[:left]:
            yield Path(directory, name)
        left = max(left - len(names), 0)
