"""The capacity: how much work per second the model server manages, learnt from traffic.

Responsible for one figure, ``max_perf``: the benchmark's, or what traffic reaches while that is
more. Without a benchmark it is the most that traffic has reached for a while.

Law: only time in which something ran counts, so an idle worker does not look slow. A benchmark's
figure never falls, and what traffic adds to it fades within minutes of other traffic: workload is
what clients claim, and one who claims too much must not turn admission off: no piece of work counts
for more than ``OUTLIER`` usual ones, of the usual size or at the usual pace, whichever is more. A
figure that only traffic has shown stays, so that a quiet hour does not make a fast worker look
full; nothing is refused by it.

What ends is noted, and counted when somebody asks, ``NOTED`` wait or a second of work has passed:
medians for every request would be dear.

Not known here: the clock (``now`` is ``time.monotonic()`` seconds), what a request is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

#: Busy seconds after which a piece of work counts half.
HALF_LIFE_S = 60.0
#: Traffic says something after this much of it.
MIN_REQUESTS = 3
MIN_BUSY_S = 1.0
#: Busy seconds after which a rate counts as sustained, and may exceed the benchmark.
SUSTAINED_S = 10.0
#: The latest pieces of work, whose medians say what is usual: few of them can not move those.
REMEMBERED = 15
#: Pieces that are judged at once, by the same medians: fewer than could move those.
JUDGED = REMEMBERED // 2
#: As many usual ones one piece may count for.
OUTLIER = 10.0
#: Ended pieces of work that wait to be counted at most, and busy seconds that they do.
NOTED = 64
NOTED_S = 1.0

_TIME_CONSTANT_S = HALF_LIFE_S / math.log(2)


class Capacity:
    """Counts what runs on the model server. ``benchmarked``: its figure, 0 while there is none."""

    __slots__ = (
        "_benchmarked",
        "_best",
        "_busy_s",
        "_faded_s",
        "_finished",
        "_noted",
        "_paces",
        "_recent_s",
        "_recent_work",
        "_running",
        "_seen",
        "_sizes",
    )

    def __init__(self, benchmarked: float = 0.0) -> None:
        self._benchmarked = benchmarked
        self._best = 0.0
        self._running = 0
        self._seen = 0.0
        self._busy_s = 0.0
        self._finished = 0
        # Work and busy time, both fading with busy time, as they were when that was _faded_s.
        self._recent_work = 0.0
        self._recent_s = 0.0
        self._faded_s = 0.0
        self._sizes: deque[float] = deque(maxlen=REMEMBERED)
        self._paces: deque[float] = deque(maxlen=REMEMBERED)  # per second
        #: not counted yet, nor are the first few before anyone can tell what is usual: size,
        #: seconds, busy time at its end
        self._noted: list[tuple[float, float, float]] = []

    def benchmarked(self, max_perf: float) -> None:
        """The benchmark found this figure."""
        self._benchmarked = max(self._benchmarked, max_perf)

    def started(self, now: float) -> None:
        """A request was sent to the model server."""
        if not self._running:
            self._seen = now
        self._running += 1

    def ended(self, workload: float, started_at: float, now: float) -> None:
        """A started request has ended; ``workload`` is what was served, 0 for a failed one.

        The work counts as done evenly from start to end: counted whole at its end, a request
        longer than the half-life would look faster than it was.
        """
        self._busy_s += now - self._seen
        self._seen = now
        self._running -= 1
        if workload > 0:
            self._finished += 1
            self._noted.append((workload, now - started_at, self._busy_s))
            if len(self._noted) >= NOTED or self._busy_s - self._faded_s >= NOTED_S:
                self._count()

    @property
    def max_perf(self) -> float:
        """Workload per second; 0: unknown yet."""
        self._count()
        if self._benchmarked > 0:
            return max(self._benchmarked, self._rate() if self._sustained else 0.0)
        if self._best > 0:
            return self._best
        if self._finished < MIN_REQUESTS or self._busy_s < MIN_BUSY_S:
            return 0.0
        return self._rate()

    @property
    def _sustained(self) -> bool:
        return self._busy_s >= SUSTAINED_S and self._finished >= MIN_REQUESTS

    def _count(self) -> None:
        faded = -math.expm1((self._faded_s - self._busy_s) / _TIME_CONSTANT_S)
        self._faded_s = self._busy_s
        self._recent_work *= 1 - faded
        self._recent_s = self._recent_s * (1 - faded) + _TIME_CONSTANT_S * faded
        if self._finished >= MIN_REQUESTS:
            if not self._sizes:
                self._remember(self._noted[:REMEMBERED])
            for start in range(0, len(self._noted), JUDGED):
                pieces = self._noted[start : start + JUDGED]
                self._judge(pieces)
                self._remember(pieces)
            self._noted.clear()
        if self._sustained:
            self._best = max(self._best, self._rate())

    def _judge(self, pieces: list[tuple[float, float, float]]) -> None:
        """Add them up, each by what was usual before it."""
        size, pace = _median(self._sizes), _median(self._paces)
        for work, seconds, busy_s in pieces:
            share = seconds / _TIME_CONSTANT_S
            usual = min(work, OUTLIER * max(size, pace * seconds))
            spread = -math.expm1(-share) / share if share > 0 else 1.0
            ago_s = self._busy_s - busy_s
            self._recent_work += usual * spread * math.exp(-ago_s / _TIME_CONSTANT_S)

    def _remember(self, pieces: list[tuple[float, float, float]]) -> None:
        for work, seconds, _ in pieces:
            self._sizes.append(work)
            if seconds > 0:
                self._paces.append(work / seconds)

    def _rate(self) -> float:
        return self._recent_work / self._recent_s


def _median(values: Iterable[float]) -> float:
    """The lower one of an even number; 0 of none."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0.0
