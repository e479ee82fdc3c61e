"""THE queue of the worker: which job runs next, which is refused, and how each one ends.

Events are method calls that carry ``now`` (``time.monotonic()`` seconds); they return the commands
to carry out, in order. The laws (numbers as in the architecture page):

1. Every job ends once: finished, failed, rejected or cancelled. An event about a job that has ended
   does nothing. A cancelled job gets no message at all: its sender has forgotten it already.
2. FIFO within a lane. A job's order is drawn once, at arrival, so one that comes back from a broken
   connection stands where it stood before, ahead of everything that arrived later.
3. A lane never runs more jobs than its limit (``lanes.py`` holds this one and the last).
4. A cancelled job's slot is free before the call returns.
5. received = served + errored + cancelled + rejected + outstanding, after every event.

Not known here: the clock, sockets, and what is inside a job.
"""

from __future__ import annotations

from collections.abc import Sequence

from backend_adapter import refusals
from backend_adapter.deadlines import Deadlines
from backend_adapter.jobs import Abort, Command, Dispatch, Fail, Job, Key, Reject, State
from backend_adapter.lanes import Lanes
from backend_adapter.refusals import MIN_RETRY_S
from reporter.messages import Totals

NOTHING: Sequence[Command] = ()
_WAITING, _RUNNING, _BEGUN = State.WAITING, State.RUNNING, State.BEGUN  # slow to look up
#: A hosted job that comes back more often may have reached a model server all the same.
MAX_TURNED_BACK = 3


class Queue:
    """All jobs of the worker that have not ended.

    ``max_jobs`` may wait; ``max_bytes`` of bodies may wait or run; ``max_running`` run at once over
    all lanes; ``max_attempts`` is how often one job may be sent. Dispatch is held until the first
    ``backend_up``.
    """

    def __init__(
        self, *, max_jobs: int, max_bytes: int, max_running: int, max_attempts: int
    ) -> None:
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._max_attempts = max_attempts
        self._max_perf = 0.0
        self._up = False
        self._failed = False
        self._draining = False
        self._reason = "it has not started yet"
        self._hosted_up = True
        self._hosted_failed = False
        self._next_order = 0
        self._jobs: dict[Key, Job] = {}
        self._lanes = Lanes(max_running)
        self._deadlines = Deadlines(self._jobs)
        self._received = self._served = self._errored = self._cancelled = self._rejected = 0.0
        self._requests = 0
        self.held_bytes = 0  #: bodies of waiting and running jobs
        self.outstanding = 0.0  #: workload of waiting and running jobs
        self.retried = 0  #: times that a job came back to its lane

    # ------------------------------------------------------------- events about one job

    def submit(self, job: Job, now: float) -> Sequence[Command]:
        """Take a job, or refuse it. A key that is known already is ignored: one job, one end."""
        if job.key in self._jobs:
            return NOTHING
        workload = job.submit.workload
        self._received += workload
        self._requests += 1
        refusal = self._refusal(job, now)
        if refusal is not None:
            if isinstance(refusal, Fail):
                self._errored += workload
            else:
                self._rejected += workload
            return [refusal]
        job.order = self._next_order
        self._next_order += 1
        self._jobs[job.key] = job
        self.held_bytes += job.size_bytes
        self.outstanding += workload
        self._lanes.join(job)
        if self._up and self._lanes.start_at_once(job):
            job.queued_at = now
            return (self._run(job, now),)
        return self._enqueue(job, now)

    def cancel(self, key: Key, now: float) -> Sequence[Command]:
        """Nobody wants this job any more."""
        job = self._jobs.get(key)
        if job is None:
            return NOTHING
        commands: list[Command] = []
        self._cancel(job, commands)
        self._dispatch(now, commands)
        return commands

    def began(self, key: Key) -> None:
        """The head of the response has arrived: from now on the job cannot be sent again."""
        job = self._running_job(key, "began")
        if job is not None:
            job.state = _BEGUN

    def finished(self, key: Key, ok: bool, now: float) -> Sequence[Command]:
        """The whole response has arrived; ``ok`` says whether it counts as served."""
        job = self._running_job(key, "finished")
        if job is None:
            return NOTHING
        self._retire(job)
        if ok:
            self._served += job.submit.workload
        else:
            self._errored += job.submit.workload
        return self._dispatched(now) if self._lanes.ready else NOTHING

    def lost(
        self, key: Key, sent: int, reason: str, now: float, *, behind: bool = False
    ) -> Sequence[Command]:
        """The connection broke before the response began.

        ``sent``: times that it may have been worked on. Each costs an attempt, and the job fails
        if it has none left or must not be sent twice. 0: it never reached the model server. That
        costs nothing, but dispatch is held until the next ``backend_up`` (that of hosted jobs:
        ``hosted_up``, unless it was ``behind`` their process): the caller sees it in ``up``, and
        probes.
        """
        job = self._running_job(key, "lost")
        if job is None:
            return NOTHING
        if behind:
            job.turned_back += 1
            sent = sent or int(job.turned_back > MAX_TURNED_BACK)
        if sent:
            job.attempts += sent
        elif job.submit.hosted and not behind:
            if self._hosted_up:
                self.hosted_down()
        elif self._up:
            self.backend_down(reason)
        spent = sent and (job.attempts >= self._max_attempts or not job.submit.redeliver)
        if spent or job.state is _BEGUN:
            text = refusals.not_again(job, reason) if spent else reason
            return self.broken(key, "model_failed", text, now)
        if self._failed or (self._hosted_failed and job.submit.hosted):
            return [self._give_up(job, now)]
        self._lanes.release(job)
        self.retried += 1
        return self._enqueue(job, now)

    def broken(self, key: Key, kind: str, message: str, now: float) -> Sequence[Command]:
        """The response cannot be completed: the job fails as ``kind``."""
        job = self._running_job(key, "broken")
        if job is None:
            return NOTHING
        commands: list[Command] = [self._fail(job, kind, message)]
        self._dispatch(now, commands)
        return commands

    def revoke(self, session_id: str, now: float) -> Sequence[Command]:
        """This session was closed: what belongs to it ends as cancelled, and is told so. O(n)."""
        commands: list[Command] = []
        for job in [job for job in self._jobs.values() if job.submit.session_id == session_id]:
            self._cancel(job, commands)
            commands.append(Fail(job, "invalid_session", "its session was closed"))
        self._dispatch(now, commands)
        return commands

    # --------------------------------------------------- events about the world around

    def cancel_peer(self, peer: str, now: float) -> Sequence[Command]:
        """Everything that this ingress submitted is void: it is gone. O(all jobs)."""
        commands: list[Command] = []
        for job in [job for job in self._jobs.values() if job.key[0] == peer]:
            self._cancel(job, commands)
        self._dispatch(now, commands)
        return commands

    def backend_up(self, now: float) -> Sequence[Command]:
        """The model server takes requests: dispatch goes on."""
        self._up = True
        self._failed = False
        return self._dispatched(now)

    def backend_down(self, reason: str) -> None:
        """The model server takes no requests for now: dispatch is held, waiting jobs wait.

        What becomes of the running ones is reported one by one (``lost``, ``broken``).
        """
        self._up = False
        if not self._failed:
            self._reason = reason

    def backend_failed(self, reason: str, now: float) -> Sequence[Command]:
        """The model server will not be restarted: nothing waits until the next ``backend_up``."""
        self._up = False
        self._failed = True
        self._reason = reason
        return [self._give_up(job, now) for job in self._lanes.waiting_jobs()]

    def hosted_up(self, now: float) -> Sequence[Command]:
        """The process that holds a worker.py takes jobs. It does until ``hosted_down``."""
        self._hosted_up = True
        self._hosted_failed = False
        self._lanes.let_hosted()
        return self._dispatched(now)

    def hosted_down(self) -> None:
        """It is away, and comes again: hosted jobs wait, the others go on."""
        self._hosted_up = self._hosted_failed = False
        self._lanes.hold_hosted()

    def hosted_failed(self, now: float) -> Sequence[Command]:
        """It will not be restarted: no hosted job waits until the next ``hosted_up``."""
        self.hosted_down()
        self._hosted_failed = True
        hosted = [job for job in self._lanes.waiting_jobs() if job.submit.hosted]
        return [self._give_up(job, now) for job in hosted]

    def set_capacity(self, max_perf: float) -> None:
        """``max_perf``: workload per second that the model server manages; 0: unknown."""
        self._max_perf = max_perf

    def drain(self) -> None:
        """The worker stops: refuse new jobs, finish the others."""
        self._draining = True

    def expire(self, now: float) -> Sequence[Command]:
        """End what has waited or run past its deadline. Due at ``next_deadline()``."""
        commands: list[Command] = []
        while (at := self.next_deadline()) is not None and at <= now:
            job = self._deadlines.pop()
            if job.state is _WAITING:
                commands.append(self._give_up(job, now))
            else:
                commands.append(Abort(job))
                commands.append(self._fail(job, "expired", "the answer took longer than allowed"))
        self._dispatch(now, commands)
        return commands

    def next_deadline(self) -> float | None:
        """Monotonic time at which ``expire`` has something to do; None: never, as things stand."""
        return self._deadlines.next()

    # ------------------------------------------------------------------------- gauges

    @property
    def up(self) -> bool:
        """Whether jobs are dispatched at all."""
        return self._up

    @property
    def waiting(self) -> int:
        return self._lanes.waiting

    @property
    def running(self) -> int:
        return self._lanes.running

    @property
    def waiting_bytes(self) -> int:
        return self._lanes.waiting_bytes

    @property
    def totals(self) -> Totals:
        """Workload by outcome since the queue exists."""
        return Totals(
            received=self._received,
            served=self._served,
            errored=self._errored,
            cancelled=self._cancelled,
            rejected=self._rejected,
            requests=self._requests,
        )

    # ---------------------------------------------------------------------- admission

    def _refusal(self, job: Job, now: float) -> Reject | Fail | None:
        submit = job.submit
        if now >= submit.expires_at:
            return Fail(job, "expired", "the time allowed for the answer was over on arrival")
        if self._draining:
            return refusals.draining(job)
        if self._failed:
            return refusals.model_down(job, self._reason)
        if self._hosted_failed and submit.hosted:
            return refusals.hooks_down(job, self._hosted_failed)
        if self._lanes.waiting >= self._max_jobs:
            return self._queue_full(job, refusals.all_places_taken(self.waiting))
        if self.held_bytes + job.size_bytes > self._max_bytes:
            return self._queue_full(job, refusals.no_room(job, self.held_bytes, self._max_bytes))
        allowed_s = submit.max_queue_time_s
        wait_s = self.outstanding / self._max_perf if self._max_perf > 0 else 0.0
        if wait_s > allowed_s or (allowed_s == 0 and self._jobs):
            return self._queue_time(job, self._lanes.waiting_in(submit.lane) + 1)
        return None

    def _queue_full(self, job: Job, text: str) -> Reject:
        position = self._lanes.waiting_in(job.submit.lane) + 1
        return Reject(job, "queue_full", text, self._retry_after_s(job), position)

    def _retry_after_s(self, job: Job) -> float:
        """Seconds until the expected wait has come down to what the job allows."""
        if self._max_perf <= 0:
            return MIN_RETRY_S
        return max(MIN_RETRY_S, self.outstanding / self._max_perf - job.submit.max_queue_time_s)

    def _queue_time(self, job: Job, position: int) -> Reject:
        return refusals.queue_time(job, len(self._jobs), self._retry_after_s(job), position)

    # -------------------------------------------------------------------- ends of a job

    def _give_up(self, job: Job, now: float) -> Command:
        """End a job that is not going to run (again)."""
        if now >= job.submit.expires_at:
            return self._fail(job, "expired", "no answer could begin within the time allowed")
        if job.attempts:
            text = f"the model server did not answer, and it cannot be asked again: {self._reason}"
            return self._fail(job, "model_failed", text)
        self._retire(job)
        self._rejected += job.submit.workload
        if self._failed:
            return refusals.model_down(job, self._reason)
        if job.submit.hosted and not self._hosted_up:
            return refusals.hooks_down(job, self._hosted_failed)
        if not self._up:
            return refusals.not_ready(job, self._reason)
        return self._queue_time(job, 0)

    def _fail(self, job: Job, kind: str, message: str) -> Fail:
        self._retire(job)
        self._errored += job.submit.workload
        return Fail(job, kind, message)

    def _cancel(self, job: Job, commands: list[Command]) -> None:
        if job.state is not _WAITING:
            commands.append(Abort(job))
        self._retire(job)
        self._cancelled += job.submit.workload

    def _retire(self, job: Job) -> None:
        """Forget a job and free what it holds."""
        del self._jobs[job.key]
        self.held_bytes -= job.size_bytes
        self.outstanding -= job.submit.workload
        if job.state is _WAITING:
            self._lanes.withdraw(job)
        else:
            self._lanes.release(job)
        self._lanes.part(job)
        self._deadlines.tidy()

    # ------------------------------------------------------------------ states of a job

    def _running_job(self, key: Key, event: str) -> Job | None:
        job = self._jobs.get(key)
        if job is not None and job.state is _WAITING:
            raise RuntimeError(f"{event} of job {key}, which is waiting: it was not dispatched")
        return job

    def _enqueue(self, job: Job, now: float) -> Sequence[Command]:
        submit = job.submit
        job.state = _WAITING
        job.queued_at = now
        job.deadline = min(now + submit.max_queue_time_s - job.waited_s, submit.expires_at)
        self._lanes.put(job)
        commands: list[Command] = []
        self._dispatch(now, commands)
        if job.state is _WAITING:
            self._deadlines.arm(job)
        return commands

    def _dispatched(self, now: float) -> Sequence[Command]:
        commands: list[Command] = []
        self._dispatch(now, commands)
        return commands

    def _dispatch(self, now: float, commands: list[Command]) -> None:
        """Run every job that may run, oldest first."""
        while self._up and (job := self._lanes.next()) is not None:
            if now > job.deadline:
                commands.append(self._give_up(job, now))
                continue
            self._lanes.start(job)
            commands.append(self._run(job, now))

    def _run(self, job: Job, now: float) -> Dispatch:
        """It has a slot."""
        submit = job.submit
        job.state = _RUNNING
        job.waited_s += now - job.queued_at
        job.dispatched_at = now
        # a second attempt takes a new connection: no doubt, and no silent third
        job.resend = submit.redeliver and not job.attempts and self._max_attempts > 1
        job.deadline = submit.expires_at
        self._deadlines.arm(job)
        return Dispatch(job)
