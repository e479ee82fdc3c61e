"""The deadlines of the queue's jobs: which one is next.

A heap whose entries are not taken out when they no longer hold: an entry is valid while its job is
armed with that very deadline. Each operation costs O(log n), spread over many; the heap is rebuilt
when most of it is stale. Not known here: the clock, and what a deadline means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import heappop, heappush

from backend_adapter.jobs import Job, Key

_SLACK = 64  #: stale entries that the heap may hold on top of as many as there are live ones


class Deadlines:
    """Those of ``jobs``, which its owner adds to and takes from."""

    __slots__ = ("_heap", "_jobs")

    def __init__(self, jobs: Mapping[Key, Job]) -> None:
        self._jobs = jobs
        self._heap: list[tuple[float, int, Key]] = []  #: (deadline, order, key)

    def arm(self, job: Job) -> None:
        """See to it that this job surfaces no later than its deadline."""
        if job.deadline < job.armed:
            job.armed = job.deadline
            heappush(self._heap, (job.deadline, job.order, job.key))

    def next(self) -> float | None:
        """Monotonic time of the first deadline; None: there is none, as things stand."""
        heap = self._heap
        while heap:
            at, _, key = heap[0]
            job = self._jobs.get(key)
            if job is not None and job.armed == job.deadline == at:
                return at
            heappop(heap)
            if job is not None and job.armed == at:  # dispatched since: it has until later now
                job.armed = math.inf
                self.arm(job)
        return None

    def pop(self) -> Job:
        """The job whose deadline ``next`` has told."""
        return self._jobs[heappop(self._heap)[2]]

    def tidy(self) -> None:
        """A job has gone."""
        entries = len(self._heap)
        if entries > _SLACK and entries > 2 * len(self._jobs) + _SLACK:
            armed = [job for job in self._jobs.values() if job.armed != math.inf]
            self._heap[:] = sorted((job.armed, job.order, job.key) for job in armed)
