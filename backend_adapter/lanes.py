"""The lanes: who waits in which FIFO, who holds a slot, and whose turn it is.

Law: within a lane the lowest order goes first, whenever it was put there; between lanes too, among
those that have a free slot. No lane runs more than its limit, all together never more than
``max_running``.

Each operation costs O(log n). Heaps hold bare orders: an entry whose job no longer waits is dropped
when it surfaces, and a heap that is mostly such entries is rebuilt, so that ten thousand cancelled
jobs in a blocked lane cost neither memory nor time. Two facts hold between calls:

- the first entry of a lane's heap belongs to a waiting job;
- the head of every lane that has a waiting job and a free slot is in ``_ready``. Such a head is
  older than the rest of its lane, so it surfaces there before any other job of its lane.

Not known here: time, deadlines, and why a job comes or goes.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from backend_adapter.jobs import Job

_SLACK = 64  #: stale entries that a heap may hold on top of as many as there are live ones


class Lane:
    """One FIFO. Exists while a job of its name does."""

    __slots__ = ("heap", "limit", "name", "running", "waiting")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.running = 0
        self.waiting = 0
        self.heap: list[int] = []  #: orders of its waiting jobs

    @property
    def full(self) -> bool:
        return self.limit != 0 and self.running >= self.limit


class Lanes:
    """Every lane that has a job. ``max_running``: slots over all lanes."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._lanes: dict[str, Lane] = {}
        self._waiting: dict[int, Job] = {}  #: by order
        self._ready: list[int] = []
        self.running = 0
        self.waiting_bytes = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def waiting_in(self, name: str) -> int:
        """How many wait in this lane."""
        lane = self._lanes.get(name)
        return lane.waiting if lane is not None else 0

    def waiting_jobs(self) -> list[Job]:
        """All that wait, in no particular order between lanes. O(n)."""
        return list(self._waiting.values())

    def join(self, job: Job) -> None:
        """Assign a new job to its lane, which is made on demand. ``put`` comes next."""
        name, limit = job.submit.lane, job.submit.lane_limit
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, limit)
        elif lane.limit != limit:  # settings were reloaded: the newest job knows
            lane.limit = limit
            self._offer(lane)
        job.lane = lane

    def put(self, job: Job) -> None:
        """Let a job wait, where its order says."""
        lane = job.lane
        self._waiting[job.order] = job
        self.waiting_bytes += job.size_bytes
        lane.waiting += 1
        heappush(lane.heap, job.order)
        if lane.heap[0] == job.order:
            self._offer(lane)

    def next(self) -> Job | None:
        """The job whose turn it is; it stays until ``start`` or ``withdraw``. None: nobody's."""
        if self.running >= self._max_running:
            return None
        ready = self._ready
        while ready:
            job = self._waiting.get(ready[0])
            if job is not None and not job.lane.full:
                return job
            heappop(ready)
        return None

    def start(self, job: Job) -> None:
        """Give a waiting job a slot."""
        job.lane.running += 1
        self.running += 1
        self._leave(job)

    def release(self, job: Job) -> None:
        """Take the slot back from a running job."""
        lane = job.lane
        was_full = lane.full
        lane.running -= 1
        self.running -= 1
        if was_full:
            self._offer(lane)

    def withdraw(self, job: Job) -> None:
        """Take out a waiting job that is not going to run."""
        self._leave(job)

    def part(self, job: Job) -> None:
        """A job that neither waits nor runs has ended; a lane goes with its last job."""
        lane = job.lane
        if not lane.waiting and not lane.running:
            del self._lanes[lane.name]

    def _leave(self, job: Job) -> None:
        lane = job.lane
        heap = lane.heap
        del self._waiting[job.order]
        self.waiting_bytes -= job.size_bytes
        lane.waiting -= 1
        if heap[0] == job.order:
            while heap and heap[0] not in self._waiting:
                heappop(heap)
            self._offer(lane)
        elif len(heap) > 2 * lane.waiting + _SLACK:
            heap[:] = [order for order in heap if order in self._waiting]
            heapify(heap)

    def _offer(self, lane: Lane) -> None:
        """Put up the lane's head if it may run. Offering it twice does no harm."""
        if not lane.waiting or lane.full:
            return
        heappush(self._ready, lane.heap[0])
        if len(self._ready) > 2 * len(self._lanes) + _SLACK:
            heads = [x.heap[0] for x in self._lanes.values() if x.waiting and not x.full]
            self._ready[:] = sorted(heads)
