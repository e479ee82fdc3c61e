"""A wall clock that a test sets for one worker: a small C library that its processes preload."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shifted_clock.c")


class ShiftedClock:
    """Compiles the library into ``directory``; skips the test where there is no C compiler.

    Attributes:
        environ: what the processes need whose clock it is.
    """

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler here")
        library = directory / "shifted_clock.so"
        flags = ["-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
        subprocess.run([compiler, *flags], check=True)
        self._file = directory / "shift"
        self._file.write_bytes(bytes(8))
        self.environ = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK_FILE": str(self._file)}

    def jump(self, to_s: int) -> None:
        """From now on, the wall clock is so many seconds ahead (negative: behind)."""
        with self._file.open("r+b") as file:  # in place: everybody has it mapped
            file.write(struct.pack("q", to_s))
