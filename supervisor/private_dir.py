"""Directories of ours that only this user may open, made where they are missing.

Cleaners take directories while a worker runs, and whoever comes first makes them again, their
parents included: what lies in them is the same, so is who may look. ``os.makedirs`` would give the
parents to everybody.

A leaf.
"""

from __future__ import annotations

import os
from contextlib import suppress

MODE = 0o700


def make(path: str) -> None:
    """Make the directory and what is missing above it; what is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    path, missing = os.path.abspath(path), []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        with suppress(FileExistsError):  # somebody was quicker
            os.mkdir(each, MODE)
