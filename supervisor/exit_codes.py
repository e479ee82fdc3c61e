"""The numbers that `python -m supervisor` and its children end with, each with its reason.

A leaf. The table in docs/ is generated from here.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit statuses; those above 63 follow sysexits.h where it has a fitting one."""

    doc: str

    CLEAN = 0, "stopped as asked"
    NOT_READY = (
        1,
        "status: not ready, or cannot be asked; other commands: refused, failed, unanswered",
    )
    NOT_RUNNING = 2, "status, ask, restart …: no worker runs with this state directory"
    USAGE = 64, "the command line is wrong, or init: the worker.py is"
    CHILD_FAILED = 69, "one of our own processes died more often than its restart budget allows"
    BUG = 70, "an error of ours; its traceback is in the log of the process that ended so"
    ORPHANED = 71, "a child: the supervisor is gone, everything of the run was swept"
    MIXED_INSTALL = 72, "another distribution's `supervisor` is in place of ours; a library is gone"
    ALREADY_RUNNING = 75, "another worker holds the run lock; its pid is named"
    PORT_TAKEN = 76, "a port that we were told to bind belongs to another program"
    SETTINGS = 78, "the settings are wrong; every fault is named"

    def __new__(cls, value: int, doc: str) -> ExitCode:
        """Keep the reason beside the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member
