"""The queue against a model of plain lists, event by event, and the laws after each of them.

The model is slow and obvious: it looks at all jobs whenever it decides. Every command of the queue,
in its order, every refusal's figures and every gauge must be the model's. All times and workloads
are multiples of 1/4, so that comparing floats is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backend_adapter.jobs import Abort, Command, Dispatch, Fail, Job, Reject
from backend_adapter.messages import Submit
from backend_adapter.queue import Queue
from backend_adapter.refusals import MIN_RETRY_S

MAX_JOBS, MAX_BYTES, MAX_RUNNING, MAX_ATTEMPTS = 8, 100, 4, 2

Word = tuple[Any, ...]


@dataclass(eq=False)
class Model:
    """One job of the model."""

    key: tuple[str, int]
    submit: Submit
    order: int
    state: str  #: waiting, running, begun
    since: float  #: when it began to wait
    waited: float = 0.0
    attempts: int = 0

    @property
    def deadline(self) -> float:
        if self.state != "waiting":
            return self.submit.expires_at
        return min(self.since + self.submit.max_queue_time_s - self.waited, self.submit.expires_at)


class QueueMachine(RuleBasedStateMachine):
    @initialize(up=st.booleans())
    def begin(self, up: bool) -> None:
        self.queue = Queue(
            max_jobs=MAX_JOBS,
            max_bytes=MAX_BYTES,
            max_running=MAX_RUNNING,
            max_attempts=MAX_ATTEMPTS,
        )
        self.now = 100.0
        self.jobs: list[Model] = []  #: all that have not ended, by order
        self.limits: dict[str, int] = {}
        self.next_limit = {"serial": 1, "two": 2, "free": 0}
        self.up = self.failed = self.draining = False
        self.hosted_up, self.hosted_failed = True, False
        self.max_perf = 0.0
        self.next_id = 0
        self.orders = 0
        self.retried = 0
        self.sums = dict.fromkeys(("received", "served", "errored", "cancelled", "rejected"), 0.0)
        self.ends: dict[tuple[str, int], int] = {}
        if up:
            self.backend_up()

    # ---------------------------------------------------------------- the model's rules

    def waiting(self) -> list[Model]:
        return [job for job in self.jobs if job.state == "waiting"]

    def running(self, lane: str | None = None) -> list[Model]:
        jobs = [job for job in self.jobs if job.state != "waiting"]
        return [job for job in jobs if lane in (None, job.submit.lane)]

    def outstanding(self) -> float:
        return sum(job.submit.workload for job in self.jobs)

    def held(self) -> int:
        return sum(len(job.submit.body) for job in self.jobs)

    def retry_after(self, submit: Submit) -> float:
        if not self.max_perf:
            return MIN_RETRY_S
        return max(MIN_RETRY_S, self.outstanding() / self.max_perf - submit.max_queue_time_s)

    def end(self, job: Model, outcome: str) -> None:
        self.jobs.remove(job)
        self.sums[outcome] += job.submit.workload
        self.ends[job.key] = self.ends.get(job.key, 0) + 1

    def give_up(self, job: Model) -> Word:
        if self.now >= job.submit.expires_at:
            self.end(job, "errored")
            return ("fail", job.key, "expired")
        if job.attempts:
            self.end(job, "errored")
            return ("fail", job.key, "model_failed")
        self.end(job, "rejected")
        if self.failed:
            return ("reject", job.key, "model_down", 0.0, 0)
        if job.submit.hosted and not self.hosted_up:
            retry_s = 0.0 if self.hosted_failed else MIN_RETRY_S
            return ("reject", job.key, "hooks_down", retry_s, 0)
        if not self.up:
            return ("reject", job.key, "not_ready", MIN_RETRY_S, 0)
        return ("reject", job.key, "queue_time", self.retry_after(job.submit), 0)

    def dispatch(self) -> list[Word]:
        words: list[Word] = []
        while self.up and len(self.running()) < MAX_RUNNING:
            ready = [
                job
                for job in self.waiting()
                if (self.hosted_up or not job.submit.hosted)
                and (
                    not self.limits[job.submit.lane]
                    or len(self.running(job.submit.lane)) < self.limits[job.submit.lane]
                )
            ]
            if not ready:
                break
            job = min(ready, key=lambda job: job.order)
            if self.now > job.deadline:
                words.append(self.give_up(job))
            else:
                job.waited += self.now - job.since
                job.state = "running"
                words.append(("dispatch", job.key))
        return words

    def admit(self, key: tuple[str, int], submit: Submit) -> list[Word]:
        self.sums["received"] += submit.workload
        position = 1 + sum(job.submit.lane == submit.lane for job in self.waiting())
        retry = self.retry_after(submit)
        refusal: Word | None = None
        if self.now >= submit.expires_at:
            self.sums["errored"] += submit.workload
            self.ends[key] = 1
            return [("fail", key, "expired")]
        if self.draining:
            refusal = ("reject", key, "draining", 0.0, 0)
        elif self.failed:
            refusal = ("reject", key, "model_down", 0.0, 0)
        elif self.hosted_failed and submit.hosted:
            refusal = ("reject", key, "hooks_down", 0.0, 0)
        elif len(self.waiting()) >= MAX_JOBS or self.held() + len(submit.body) > MAX_BYTES:
            refusal = ("reject", key, "queue_full", retry, position)
        elif (self.max_perf and self.outstanding() / self.max_perf > submit.max_queue_time_s) or (
            submit.max_queue_time_s == 0 and self.jobs
        ):
            refusal = ("reject", key, "queue_time", retry, position)
        if refusal is not None:
            self.sums["rejected"] += submit.workload
            self.ends[key] = 1
            return [refusal]
        self.limits[submit.lane] = submit.lane_limit
        self.jobs.append(Model(key, submit, self.orders, "waiting", self.now))
        self.orders += 1
        return self.dispatch()

    # ---------------------------------------------------------------- comparing

    def check(self, commands: Sequence[Command] | None, expected: list[Word]) -> None:
        assert [self.word(command) for command in commands or ()] == expected

    def word(self, command: Command) -> Word:
        key = command.job.key
        match command:
            case Dispatch():
                return ("dispatch", key)
            case Abort():
                return ("abort", key)
            case Reject(_, kind, message, retry_after_s, position):
                assert message
                return ("reject", key, kind, retry_after_s, position)
            case Fail(_, kind, message):
                assert message
                return ("fail", key, kind)

    # ---------------------------------------------------------------- events

    @rule(
        peer=st.sampled_from("ab"),
        lane=st.sampled_from(["serial", "two", "free"]),
        quarters=st.integers(0, 40),
        wait_s=st.sampled_from([0.0, 0.5, 2.0, 30.0, math.inf]),
        life_s=st.sampled_from([0.0, 1.0, 5.0, math.inf, math.inf]),
        redeliver=st.booleans(),
        size=st.sampled_from([0, 10, 60]),
        hosted=st.booleans(),
    )
    def submit(
        self,
        peer: str,
        lane: str,
        quarters: int,
        wait_s: float,
        life_s: float,
        redeliver: bool,
        size: int,
        hosted: bool,
    ) -> None:
        self.next_id += 1
        submit = Submit(
            id=self.next_id,
            path="/",
            lane=lane,
            lane_limit=self.next_limit[lane],
            workload=quarters / 4,
            max_queue_time_s=wait_s,
            expires_at=self.now + life_s,
            credit=1,
            redeliver=redeliver,
            body=bytes(size),
            session_id=("", "x", "y")[self.next_id % 3],
            hosted=hosted,
        )
        key = (peer, self.next_id)
        self.check(self.queue.submit(Job(key, submit), self.now), self.admit(key, submit))

    @rule(
        count=st.integers(2, 6),
        lane=st.sampled_from(["serial", "two", "free"]),
        hosted=st.booleans(),
    )
    def submit_many(self, count: int, lane: str, hosted: bool) -> None:
        for _ in range(count):
            self.submit("a", lane, 4, math.inf, math.inf, True, 1, hosted)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        self.check(self.queue.submit(Job(job.key, job.submit), self.now), [])

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        expected: list[Word] = [] if job.state == "waiting" else [("abort", job.key)]
        self.end(job, "cancelled")
        self.check(self.queue.cancel(job.key, self.now), expected + self.dispatch())

    @rule(peer=st.sampled_from("ab"))
    def cancel_peer(self, peer: str) -> None:
        expected: list[Word] = []
        for job in [job for job in self.jobs if job.key[0] == peer]:
            if job.state != "waiting":
                expected.append(("abort", job.key))
            self.end(job, "cancelled")
        self.check(self.queue.cancel_peer(peer, self.now), expected + self.dispatch())

    @rule(session_id=st.sampled_from("xy"))
    def revoke(self, session_id: str) -> None:
        expected: list[Word] = []
        for job in [job for job in self.jobs if job.submit.session_id == session_id]:
            if job.state != "waiting":
                expected.append(("abort", job.key))
            self.end(job, "cancelled")
            expected.append(("fail", job.key, "invalid_session"))
        self.check(self.queue.revoke(session_id, self.now), expected + self.dispatch())

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def began(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.running()))
        job.state = "begun"
        self.queue.began(job.key)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), ok=st.booleans())
    def finished(self, data: st.DataObject, ok: bool) -> None:
        job = data.draw(st.sampled_from(self.running()))
        self.end(job, "served" if ok else "errored")
        self.check(self.queue.finished(job.key, ok, self.now), self.dispatch())

    @precondition(lambda self: self.running())
    @rule(data=st.data(), sent=st.booleans())
    def lost(self, data: st.DataObject, sent: bool) -> None:
        job = data.draw(st.sampled_from(self.running()))
        if sent:
            job.attempts += 1
        elif job.submit.hosted:
            self.hosted_up = False  # failed or not: it stays what it was
        else:
            self.up = False
        spent = sent and (job.attempts >= MAX_ATTEMPTS or not job.submit.redeliver)
        if spent or job.state == "begun":
            self.end(job, "errored")
            expected = [("fail", job.key, "model_failed"), *self.dispatch()]
        elif self.failed or (self.hosted_failed and job.submit.hosted):
            expected = [self.give_up(job)]
        else:
            job.state, job.since = "waiting", self.now
            self.retried += 1
            expected = self.dispatch()
        self.check(self.queue.lost(job.key, sent, "it broke", self.now), expected)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), kind=st.sampled_from(["model_failed", "model_timeout"]))
    def broken(self, data: st.DataObject, kind: str) -> None:
        job = data.draw(st.sampled_from(self.running()))
        self.end(job, "errored")
        expected = [("fail", job.key, kind), *self.dispatch()]
        self.check(self.queue.broken(job.key, kind, "it broke", self.now), expected)

    @rule()
    def news_of_what_has_ended(self) -> None:
        live = {job.key for job in self.jobs}
        for key in [key for key in self.ends if key not in live][-3:]:
            self.check(self.queue.cancel(key, self.now), [])
            self.queue.began(key)
            self.check(self.queue.finished(key, True, self.now), [])
            self.check(self.queue.lost(key, False, "x", self.now), [])
            self.check(self.queue.broken(key, "model_failed", "x", self.now), [])

    @rule()
    def backend_up(self) -> None:
        self.up, self.failed = True, False
        self.check(self.queue.backend_up(self.now), self.dispatch())

    @rule()
    def backend_down(self) -> None:
        self.up = False
        self.queue.backend_down("it died")

    @rule()
    def model_server_dies(self) -> None:
        """As the adapter tells it: dispatch is held, then every running job is reported."""
        self.backend_down()
        for job in self.running():
            begun = job.state == "begun"
            if begun:
                self.end(job, "errored")
                expected = [("fail", job.key, "model_failed")]
                self.check(self.queue.broken(job.key, "model_failed", "x", self.now), expected)
            else:
                job.attempts += 1
                if job.attempts >= MAX_ATTEMPTS or not job.submit.redeliver:
                    self.end(job, "errored")
                    expected = [("fail", job.key, "model_failed")]
                elif self.failed or (self.hosted_failed and job.submit.hosted):
                    expected = [self.give_up(job)]
                else:
                    job.state, job.since = "waiting", self.now
                    self.retried += 1
                    expected = []
                self.check(self.queue.lost(job.key, True, "x", self.now), expected)

    @rule()
    def backend_failed(self) -> None:
        self.up, self.failed = False, True
        expected = [self.give_up(job) for job in self.waiting()]
        commands = [self.word(c) for c in self.queue.backend_failed("budget spent", self.now)]
        assert sorted(commands) == sorted(expected)

    @rule()
    def hosted_goes_up(self) -> None:
        self.hosted_up, self.hosted_failed = True, False
        self.check(self.queue.hosted_up(self.now), self.dispatch())

    @rule()
    def hosted_goes_down(self) -> None:
        self.hosted_up = self.hosted_failed = False
        self.queue.hosted_down()

    @rule()
    def hosted_fails(self) -> None:
        self.hosted_up, self.hosted_failed = False, True
        expected = [self.give_up(job) for job in self.waiting() if job.submit.hosted]
        commands = [self.word(c) for c in self.queue.hosted_failed(self.now)]
        assert sorted(commands) == sorted(expected)

    @precondition(lambda self: self.orders > 10)
    @rule()
    def drain(self) -> None:
        self.draining = True
        self.queue.drain()

    @rule(max_perf=st.sampled_from([0.0, 1.0, 8.0]))
    def set_capacity(self, max_perf: float) -> None:
        self.max_perf = max_perf
        self.queue.set_capacity(max_perf)

    @rule(lane=st.sampled_from(["serial", "two", "free"]), limit=st.integers(0, 3))
    def reload(self, lane: str, limit: int) -> None:
        self.next_limit[lane] = limit

    @rule(quarters=st.integers(0, 40))
    def time_passes(self, quarters: int) -> None:
        self.now += quarters / 4

    @rule()
    def expire(self) -> None:
        expected: list[Word] = []
        late = [job for job in self.jobs if job.deadline <= self.now]
        for job in sorted(late, key=lambda job: (job.deadline, job.order)):
            if job.state == "waiting":
                expected.append(self.give_up(job))
            else:
                self.end(job, "errored")
                expected += [("abort", job.key), ("fail", job.key, "expired")]
        self.check(self.queue.expire(self.now), expected + self.dispatch())

    # ---------------------------------------------------------------- laws

    @invariant()
    def one_end_each(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        assert len(self.ends) + len(self.jobs) == self.next_id == self.queue.totals.requests

    @invariant()
    def workload_is_conserved(self) -> None:
        totals, queue = self.queue.totals, self.queue
        for name, value in self.sums.items():
            assert getattr(totals, name) == value
        ended = totals.served + totals.errored + totals.cancelled + totals.rejected
        assert totals.received == ended + queue.outstanding
        assert queue.outstanding == self.outstanding()

    @invariant()
    def gauges_are_true(self) -> None:
        queue = self.queue
        assert queue.waiting == len(self.waiting())
        assert queue.running == len(self.running()) <= MAX_RUNNING
        assert queue.held_bytes == self.held() <= MAX_BYTES
        assert queue.waiting_bytes == sum(len(job.submit.body) for job in self.waiting())
        assert queue.retried == self.retried
        assert queue.up == self.up
        deadlines = [job.deadline for job in self.jobs if job.deadline < math.inf]
        assert queue.next_deadline() == min(deadlines, default=None)


QueueMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=60)
TestQueueMachine = QueueMachine.TestCase
