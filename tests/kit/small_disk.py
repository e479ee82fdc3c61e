"""A disk that is really full: a small tmpfs, mounted for one test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        root: where it is mounted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / "ballast"

    def fill(self) -> None:
        """Leave no byte of room; what is freed meanwhile is taken again."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**16, 2**10, 1):
                with suppress(OSError):  # the disk is full
                    while file.write(b"x" * size):
                        pass
        assert self.free_bytes == 0

    def empty(self) -> None:
        """Give the room back."""
        self._ballast.unlink()

    @property
    def free_bytes(self) -> int:
        """Room that is left."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize


@contextmanager
def small_disk(root: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount it at ``root``; skips the test where this process may not mount."""
    root.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(root)]
    tried = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {tried.stderr.strip()}")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
