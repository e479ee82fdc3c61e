"""The lanes: who waits in which FIFO, who holds a slot, and whose turn it is.

Law: within a lane the lowest order goes first, whenever it was put there; between lanes too, among
those that have a free slot. No lane runs more than its limit, all together never more than
``max_running``. While hosted jobs are held (the process that holds a worker.py is away), the others
go on as if those were not there; let go again, they stand where they stood.

Each operation costs O(log n). Heaps hold bare orders: an entry whose job no longer waits is dropped
when it surfaces, and a heap that is mostly such entries is rebuilt, so that ten thousand cancelled
jobs in a blocked lane cost neither memory nor time. A lane is two lines, one of hosted jobs and one
of the others, which share its slots. Two facts hold between calls:

- the first entry of a line's heap belongs to a waiting job;
- the head of every line that has a waiting job and a free slot, and is not held, is in ``ready``.
  Such a head is older than the rest of its line, so it surfaces there before any other job of it.

Not known here: time, deadlines, and why a job comes or goes.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from backend_adapter.jobs import Job

_SLACK = 64  #: stale entries that a heap may hold on top of as many as there are live ones


class Line:
    """The jobs of a lane that go to the same server, in their order."""

    __slots__ = ("heap", "hosted", "lane", "waiting")

    def __init__(self, lane: Lane, hosted: bool) -> None:
        self.lane = lane
        self.hosted = hosted
        self.waiting = 0
        self.heap: list[int] = []  #: orders of its waiting jobs


class Lane:
    """One FIFO. Exists while a job of its name does."""

    __slots__ = ("limit", "lines", "name", "running")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.running = 0
        self.lines = (Line(self, False), Line(self, True))

    @property
    def waiting(self) -> int:
        return self.lines[False].waiting + self.lines[True].waiting

    @property
    def full(self) -> bool:
        return 0 < self.limit <= self.running


class Lanes:
    """Every lane that has a job. ``max_running``: slots over all lanes."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._lanes: dict[str, Lane] = {}
        self._waiting: dict[int, Job] = {}  #: by order
        #: orders that were offered, and may be stale; empty: it is nobody's turn
        self.ready: list[int] = []
        self._holding = False
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

    def hold_hosted(self) -> None:
        """No hosted job's turn comes until ``let_hosted``."""
        self._holding = True

    def let_hosted(self) -> None:
        """Hosted jobs have their turns again. O(lanes)."""
        if self._holding:
            self._holding = False
            for lane in self._lanes.values():
                self._offer(lane.lines[True])

    def join(self, job: Job) -> None:
        """Assign a new job to its lane, made on demand. ``start_at_once`` or ``put`` comes next."""
        name, limit = job.submit.lane, job.submit.lane_limit
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, limit)
        elif lane.limit != limit:  # settings were reloaded: the newest job knows
            lane.limit = limit
            self._offer_both(lane)
        job.lane = lane

    def put(self, job: Job) -> None:
        """Let a job wait, where its order says."""
        line = job.lane.lines[job.submit.hosted]
        self._waiting[job.order] = job
        self.waiting_bytes += job.size_bytes
        line.waiting += 1
        heappush(line.heap, job.order)
        if line.heap[0] == job.order:
            self._offer(line)

    def start_at_once(self, job: Job) -> bool:
        """Give a new job a slot, in place of ``put``. False: none is free for it now."""
        lane = job.lane
        if self.running >= self._max_running or 0 < lane.limit <= lane.running:
            return False
        if (self.ready and self.next() is not None) or (self._holding and job.submit.hosted):
            return False
        lane.running += 1
        self.running += 1
        return True

    def next(self) -> Job | None:
        """The job whose turn it is; it stays until ``start`` or ``withdraw``. None: nobody's."""
        if not self.ready or self.running >= self._max_running:
            return None
        ready = self.ready
        while ready:
            job = self._waiting.get(ready[0])
            held = self._holding and job is not None and job.submit.hosted
            if job is not None and not job.lane.full and not held:
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
        lane.running -= 1
        self.running -= 1
        if lane.limit == lane.running + 1:
            self._offer_both(lane)

    def withdraw(self, job: Job) -> None:
        """Take out a waiting job that is not going to run."""
        self._leave(job)

    def part(self, job: Job) -> None:
        """A job that neither waits nor runs has ended; a lane goes with its last job."""
        lane = job.lane
        if not lane.running and not lane.waiting:
            del self._lanes[lane.name]

    def _leave(self, job: Job) -> None:
        line = job.lane.lines[job.submit.hosted]
        heap = line.heap
        del self._waiting[job.order]
        self.waiting_bytes -= job.size_bytes
        line.waiting -= 1
        if heap[0] == job.order:
            while heap and heap[0] not in self._waiting:
                heappop(heap)
            self._offer(line)
        elif len(heap) > 2 * line.waiting + _SLACK:
            heap[:] = [order for order in heap if order in self._waiting]
            heapify(heap)

    def _offer_both(self, lane: Lane) -> None:
        self._offer(lane.lines[False])
        self._offer(lane.lines[True])

    def _offer(self, line: Line) -> None:
        """Put up the line's head if it may run. Offering it twice does no harm."""
        if not self._may_run(line):
            return
        heappush(self.ready, line.heap[0])
        if len(self.ready) > 4 * len(self._lanes) + _SLACK:
            lines = [line for lane in self._lanes.values() for line in lane.lines]
            self.ready[:] = sorted(each.heap[0] for each in lines if self._may_run(each))

    def _may_run(self, line: Line) -> bool:
        held = line.hosted and self._holding
        return bool(line.waiting) and not line.lane.full and not held
