"""Waiting for a condition with a deadline: the only way that tests wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Generous, because several suites share the machine's two cores.
DEADLINE_S = 30.0
_POLL_S = 0.01


def wait_until(
    condition: Callable[[], T], deadline_s: float = DEADLINE_S, what: str = "the condition"
) -> T:
    """Poll ``condition`` until it is true and return what it returned.

    Raises AssertionError naming ``what`` when ``deadline_s`` seconds have passed.
    """
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() >= end:
            raise AssertionError(f"waited {deadline_s:g} s for {what}; last value: {value!r}")
        time.sleep(_POLL_S)
    return value


async def wait_until_async(
    condition: Callable[[], T], deadline_s: float = DEADLINE_S, what: str = "the condition"
) -> T:
    """``wait_until`` for code inside a running loop; ``condition`` itself is an ordinary call."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() >= end:
            raise AssertionError(f"waited {deadline_s:g} s for {what}; last value: {value!r}")
        await asyncio.sleep(_POLL_S)
    return value
