"""A clock that stands still until the test moves it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class FakeTimer:
    """One call that a FakeClock owes; ``cancel()`` forgets it."""

    __slots__ = ("callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """The callback will not be called any more."""
        self.cancelled = True


class FakeClock:
    """Stands in for ``time.monotonic`` (call it) and for a loop's timers (``call_later``)."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        """Call ``callback`` when the clock has been moved ``delay_s`` seconds from now."""
        return self.call_at(self.now + delay_s, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeTimer:
        """Call ``callback`` when the clock reaches ``when``."""
        timer = FakeTimer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def next_at(self) -> float | None:
        """When the earliest live timer is due; None without one."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, seconds: float) -> float:
        """Move on, calling every timer that falls due at its own time, in order."""
        end = self.now + seconds
        while (due := self.next_at()) is not None and due <= end:
            timer = heapq.heappop(self._timers)[2]
            self.now = max(self.now, due)
            timer.callback()
        self.now = end
        return end
