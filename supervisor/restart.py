"""Backoff and restart budget: may what crashed be started again, and after which delay?

Law: within any ``window_s`` seconds at most ``budget`` restarts are granted. The first crash
restarts at once; further ones wait ``first_delay_s``, doubling up to ``max_delay_s``, jittered by
20 % either way but never beyond ``max_delay_s``. The delay falls back only after a crash that was
preceded by ``stable_s`` seconds of READY, so a child that dies just after it got ready backs off
like one that never did.

Pure: the time and the random number are arguments. It must not know what crashed, or why.
"""

from __future__ import annotations

from collections import deque

import msgspec

#: The delay is multiplied by a number from 1 - JITTER up to 1 + JITTER.
JITTER = 0.2


class Policy(msgspec.Struct, frozen=True):
    """How patient we are with one child. ``supervisor/settings.py`` explains each figure."""

    #: Restarts that may be granted within ``window_s``.
    budget: int
    #: Length of the sliding window, seconds.
    window_s: float
    #: Delay before the second restart in a row, seconds; the first has none.
    first_delay_s: float
    #: Longest delay, seconds.
    max_delay_s: float
    #: Seconds of READY after which the delay falls back to none.
    stable_s: float
    #: Seconds from spawn to READY before the child is killed.
    start_timeout_s: float
    #: Seconds from SIGTERM to SIGKILL when a restart is asked for.
    stop_timeout_s: float


class Budget:
    """The restarts of one child. Holds at most ``policy.budget`` times of past restarts."""

    __slots__ = ("_delay_s", "_granted", "_policy")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._granted: deque[float] = deque()
        self._delay_s = 0.0  # of the next restart, before jitter

    def crashed(self, now: float, ready_since: float | None, jitter: float) -> float | None:
        """Account for one crash.

        ``ready_since`` is when the READY time began that led up to the crash, None if it never was
        READY; ``jitter`` is a random number of [0, 1). Returns the seconds to wait before the
        restart, or None when the budget is spent.
        """
        policy = self._policy
        if ready_since is not None and now - ready_since >= policy.stable_s:
            self._delay_s = 0.0
        while self._granted and now - self._granted[0] >= policy.window_s:
            self._granted.popleft()
        if len(self._granted) >= policy.budget:
            return None
        self._granted.append(now)
        delay_s = self._delay_s
        self._delay_s = min(max(2 * delay_s, policy.first_delay_s), policy.max_delay_s)
        return min(delay_s * (1 - JITTER + 2 * JITTER * jitter), policy.max_delay_s)

    def reset(self) -> None:
        """Forget every crash: somebody looked at it and said to try again."""
        self._granted.clear()
        self._delay_s = 0.0
