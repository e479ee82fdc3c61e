"""Pure: the jobs that this ingress process has promised to answer, and the session they ride on.

Law 1 seen from this side: every job that was taken leaves exactly once, through ``settle``. A
session with the adapter may end at any moment; then

- a job whose response had not begun is submitted again in the next session, unchanged, unless its
  route forbids it or it has been sent ``MAX_DELIVERIES`` times already;
- a job whose response had begun fails, visibly: its bytes can not be sent twice (law 7).

Bounds: ``max_jobs`` jobs; nobody waits longer than ``GRACE_S`` while no session stands, nor while
one stands whose adapter takes nothing any more.

This module knows nothing of HTTP, sockets or clocks.
"""

from __future__ import annotations

from typing import Any

import msgspec

from backend_adapter.messages import SessionCall, Submit

#: Seconds that a job may wait for an adapter to appear.
GRACE_S = 30.0
#: Seconds that even a job that must not queue waits for an adapter that is being restarted.
RESTART_S = 5.0
#: A job that was in flight while the adapter died this often may be what kills it.
MAX_DELIVERIES = 3


class Job(msgspec.Struct, eq=False):
    """One promised answer."""

    submit: Submit | SessionCall
    exchange: Any
    route: str
    key: int  #: of its row in the accounts; 0: it is no work, and has none
    request_idx: int
    taken_at: float
    deliveries: int = 0  #: times it was handed to an adapter
    begun: bool = False  #: the client has seen the beginning of the response
    stream: bool = False  #: the response is an event stream, so an error can be told inside it
    owed: int = 0  #: response bytes that left for the client but were not credited back yet
    trusted: bool = False  #: it has been given more credit, as its client reads
    status: int = 0
    started_at: float = 0.0
    first_byte_at: float = 0.0
    sent_bytes: int = 0
    length: int = -1  #: bytes of the response's body; -1: only its End tells


class Lost:
    """A job that can not be answered any more because its session ended, and why."""

    __slots__ = ("job", "kind", "message")

    def __init__(self, job: Job, kind: str, message: str) -> None:
        self.job = job
        self.kind = kind
        self.message = message


class Admission:
    """Every unanswered job of this process, by id, in the order of arrival.

    ``first_id``: random, so that what was meant for a process before this one, of the same name, is
    nobody's here.
    """

    def __init__(self, max_jobs: int, first_id: int = 0) -> None:
        self._max_jobs = max_jobs
        self._next = first_id
        self.jobs: dict[int, Job] = {}
        self._up = False
        self._down_since = 0.0
        #: jobs that the adapter of this session has given back, and since when
        self._kept: dict[int, float] = {}
        #: jobs that were handed to a second adapter
        self.redelivered = 0
        #: the whole worker ends: nobody comes after the adapter that is there
        self.stopping = False

    @property
    def full(self) -> bool:
        """No further job can be taken."""
        return len(self.jobs) >= self._max_jobs

    def next_id(self) -> int:
        """The id that the next job's Submit carries."""
        self._next += 1
        return self._next

    def take(self, job: Job) -> bool:
        """Promise an answer. True: submit it now; False: it is submitted when a session stands."""
        self.jobs[job.submit.id] = job
        if self._up:
            job.deliveries += 1
        return self._up

    def get(self, job_id: int) -> Job | None:
        """The job, unless it has been settled."""
        return self.jobs.get(job_id)

    def settle(self, job_id: int) -> Job | None:
        """The job's one end. None: it had ended already."""
        self._kept.pop(job_id, None)
        return self.jobs.pop(job_id, None)

    def keep(self, job_id: int, now: float) -> bool:
        """The adapter gave a job back that never ran: it waits for the next session.

        False: it has ended, or this process is stopping as well.
        """
        job = self.jobs.get(job_id)
        if job is None or self.stopping:
            return False
        job.deliveries -= 1
        self._kept[job_id] = now
        return True

    def link_up(self) -> list[Job]:
        """A session began: what to submit, oldest first."""
        self._up = True
        self._kept.clear()
        for job in self.jobs.values():
            self.redelivered += job.deliveries > 0
            job.deliveries += 1
        return list(self.jobs.values())

    def link_down(self, now: float) -> list[Lost]:
        """The session ended: settle and return what can not ride on another one."""
        self._up = False
        self._down_since = now
        self._kept.clear()
        lost = []
        for job in self.jobs.values():
            if job.begun:
                message = "the worker's adapter was restarted while the answer was under way"
            elif job.deliveries and not job.submit.redeliver:
                message = "the worker's adapter was restarted; this route may not run twice"
            elif job.deliveries >= MAX_DELIVERIES:
                message = f"the worker's adapter was restarted {MAX_DELIVERIES} times meanwhile"
            else:
                continue
            lost.append(Lost(job, "adapter_down", message))
        for item in lost:
            del self.jobs[item.job.submit.id]
        return lost

    def give_up(self) -> list[Lost]:
        """No adapter comes any more: settle and return every job."""
        text = "the worker's adapter failed for good; send the request elsewhere"
        jobs, self.jobs = self.jobs, {}
        self._kept.clear()
        return [Lost(job, "adapter_down", text) for job in jobs.values()]

    def expire(self, now: float) -> list[Lost]:
        """Settle and return what waited too long for an adapter. While a session stands, nothing
        does but what was given back in it.
        """
        if self._up:
            what = "being restarted"
            waiting = [(self.jobs[job_id], since) for job_id, since in self._kept.items()]
        else:
            what, down_since = "not running", self._down_since
            waiting = [(job, max(job.taken_at, down_since)) for job in self.jobs.values()]
        lost = []
        for job, since in waiting:
            allowed = min(max(job.submit.max_queue_time_s, RESTART_S), GRACE_S)
            if now - since > allowed:
                lost.append(Lost(job, "adapter_down", f"the worker's adapter is {what}"))
            elif now > job.submit.expires_at:
                lost.append(Lost(job, "expired", "no answer within the route's timeout"))
        for item in lost:
            self.settle(item.job.submit.id)
        return lost
