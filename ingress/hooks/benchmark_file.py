"""``.has_benchmark``: the figure of the last benchmark, as the public PyWorker keeps it.

It lies in the working directory. People delete it, or write a figure of their own into it, before
their file runs, in it, or while its model loads: so it is read when the figure is needed. A figure
without a fingerprint is a person's, and holds whatever has changed.
"""

from __future__ import annotations

import logging
import os

NAME = ".has_benchmark"
_log = logging.getLogger("hooks")


def remembered(fingerprint: str) -> float:
    """Workload per second that an earlier run has measured, or a person has written; 0: none."""
    try:
        with open(NAME, encoding="utf-8") as file:
            lines = file.read(4096).split()
        figure = float(lines[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    if len(lines) > 1 and lines[1] != fingerprint:
        _log.info("%s is of another model or workload: measuring anew", NAME)
        return 0.0
    return figure if 0 < figure < 2**40 else 0.0


def remember(max_perf: float, fingerprint: str) -> None:
    """A benchmark has found this figure, or has taken the one that was there."""
    if remembered(fingerprint) == max_perf:
        return
    try:
        with open(f"{NAME}.new", "w", encoding="utf-8") as file:
            file.write(f"{max_perf}\n{fingerprint}\n")
        os.replace(f"{NAME}.new", NAME)
    except OSError as error:
        _log.warning("%s cannot be written: %s", NAME, error.strerror)
