"""Lets a test block or bloat a Python process by a signal; nothing of the product knows of it.

Every interpreter that finds this directory on ``PYTHONPATH`` imports it before anything else.
SIGRTMIN + 1: the main thread does nothing any more, and its event loop with it, for ``BLOCKED_S``
seconds; signals stay pending, other threads go on. SIGRTMIN + 2: memory is taken and filled, up to
``MOST_BYTES``. SIGRTMIN: it forks a child in a session of its own that forks and ends, and so does
each of its children, ``GENERATIONS`` times: no look at /proc finds one that still lives.
"""

from __future__ import annotations

import os
import signal
import time

BLOCKED_S = 300.0
MOST_BYTES, STEP_BYTES = 2**31, 2**24
GENERATIONS = 50_000
_hoard: list[bytearray] = []


def _block(_number: int, _frame: object) -> None:
    end = time.monotonic() + BLOCKED_S
    while (left_s := end - time.monotonic()) > 0:
        time.sleep(left_s)


def _bloat(_number: int, _frame: object) -> None:
    while len(_hoard) * STEP_BYTES < MOST_BYTES:
        _hoard.append(bytearray(b"x") * STEP_BYTES)


def _fork(_number: int, _frame: object) -> None:
    if os.fork() == 0:
        os.setsid()
        for _ in range(GENERATIONS):
            if os.fork():
                os._exit(0)
        os._exit(0)


signal.signal(signal.SIGRTMIN, _fork)
signal.signal(signal.SIGRTMIN + 1, _block)
signal.signal(signal.SIGRTMIN + 2, _bloat)
