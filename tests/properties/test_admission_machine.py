"""Law 1 from the door's side: each job that was taken is settled exactly once, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backend_adapter.messages import Submit
from ingress.admission import GRACE_S, MAX_DELIVERIES, RESTART_S, Admission, Job, Lost

MAX_JOBS = 6


def job(
    admission: Admission,
    now: float,
    *,
    redeliver: bool = True,
    max_queue_time_s: float = 30.0,
    expires_at: float = float("inf"),
) -> Job:
    number = admission.next_id()
    submit = Submit(
        number, "/p", "lane", 0, 1.0, max_queue_time_s, expires_at, 4096, redeliver=redeliver
    )
    return Job(submit, object(), "/p", number, 0, now)


class Door(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 50.0
        self.admission = Admission(MAX_JOBS)
        self.up = False
        self.down_since = 0.0
        self.taken: list[Job] = []
        self.ended: set[int] = set()
        self.submitted: dict[int, int] = {}
        self.given_back: dict[int, float] = {}

    def _submit(self, job: Job) -> None:
        """Hand it to the adapter of this session."""
        number = job.submit.id
        assert number not in self.ended
        assert not job.begun, "bytes were sent twice"
        self.submitted[number] = self.submitted.get(number, 0) + 1
        assert self.submitted[number] <= (MAX_DELIVERIES if job.submit.redeliver else 1)
        assert self.submitted[number] == job.deliveries

    def _end(self, number: int) -> None:
        assert number not in self.ended, "settled twice"
        self.ended.add(number)

    def _lost(self, lost: list[Lost]) -> None:
        for item in lost:
            assert item.message
            self._end(item.job.submit.id)

    def _waiting(self) -> list[Job]:
        return [job for job in self.taken if job.submit.id not in self.ended]

    @precondition(lambda self: not self.admission.full)
    @rule(
        redeliver=st.booleans(),
        max_queue_time_s=st.sampled_from([0.0, 10.0, 60.0, float("inf")]),
        timeout_s=st.sampled_from([3.0, float("inf")]),
    )
    def request_arrives(self, redeliver: bool, max_queue_time_s: float, timeout_s: float) -> None:
        new = job(
            self.admission,
            self.now,
            redeliver=redeliver,
            max_queue_time_s=max_queue_time_s,
            expires_at=self.now + timeout_s,
        )
        self.taken.append(new)
        now = self.admission.take(new)
        assert now == self.up
        if now:
            self._submit(new)

    @precondition(lambda self: self.up and self._waiting())
    @rule(data=st.data())
    def response_begins(self, data: st.DataObject) -> None:
        begun = data.draw(st.sampled_from(range(len(self._waiting()))))
        self._waiting()[begun].begun = True

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def an_end_arrives(self, data: st.DataObject) -> None:
        """A terminal message, or the client left; perhaps both, perhaps again."""
        number = data.draw(st.integers(1, len(self.taken)))
        waits = number not in self.ended
        assert (self.admission.get(number) is not None) == waits
        settled = self.admission.settle(number)
        assert (settled is not None) == waits
        if settled is not None:
            assert settled.submit.id == number
            self._end(number)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), stopping=st.booleans())
    def the_adapter_gives_one_back(self, data: st.DataObject, stopping: bool) -> None:
        """It is being restarted and never ran the job; maybe the answer crossed its end."""
        number = data.draw(st.integers(1, len(self.taken)))
        handed = self.submitted.get(number, 0) > 0 and self.up
        if number in self.ended or not handed or self.taken[number - 1].begun:
            return
        self.admission.stopping = stopping
        assert self.admission.keep(number, self.now) == (not stopping)
        self.admission.stopping = False
        if not stopping:
            self.submitted[number] -= 1
            self.given_back[number] = self.now

    @precondition(lambda self: not self.up)
    @rule()
    def session_begins(self) -> None:
        again = [job for job in self._waiting() if self.submitted.get(job.submit.id)]
        before = self.admission.redelivered
        self.up = True
        self.given_back.clear()
        submits = self.admission.link_up()
        assert submits == self._waiting(), "oldest first, and all of them"
        for each in submits:
            self._submit(each)
        assert self.admission.redelivered - before == len(again)

    @precondition(lambda self: self.up)
    @rule()
    def session_ends(self) -> None:
        self.up = False
        self.given_back.clear()
        self.down_since = self.now
        begun = {job.submit.id for job in self._waiting() if job.begun}
        lost = self.admission.link_down(self.now)
        assert begun <= {item.job.submit.id for item in lost}
        assert {item.kind for item in lost} <= {"adapter_down"}
        self._lost(lost)

    @rule(seconds=st.sampled_from([0.5, 4.0, 6.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        lost = self.admission.expire(self.now)
        for item in lost:
            number = item.job.submit.id
            assert not self.up or number in self.given_back, "the adapter decides while it is there"
            waited = self.now - self.waits_since(item.job)
            if item.kind == "adapter_down":
                assert waited > RESTART_S
            else:
                assert item.kind == "expired"
                assert self.now > item.job.submit.expires_at
        self._lost(lost)
        for each in self._waiting():
            if not self.up or each.submit.id in self.given_back:
                waited = self.now - self.waits_since(each)
                assert waited <= min(GRACE_S, max(RESTART_S, each.submit.max_queue_time_s))
                assert self.now <= each.submit.expires_at

    def waits_since(self, job: Job) -> float:
        """For an adapter that takes it."""
        if self.up:
            return self.given_back[job.submit.id]
        return max(job.taken_at, self.down_since)

    @invariant()
    def what_was_taken_is_promised_or_settled(self) -> None:
        assert list(self.admission.jobs.values()) == self._waiting()
        assert len(self.admission.jobs) <= MAX_JOBS
        assert self.admission.full == (len(self.admission.jobs) == MAX_JOBS)

    def teardown(self) -> None:
        """Without an adapter nobody waits for ever."""
        if self.up:
            self.session_ends()
        self.time_passes(GRACE_S + 0.1)
        assert self.ended == {job.submit.id for job in self.taken}


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=100, stateful_step_count=40)


# ------------------------------------------------------------------ one by one


def test_why_a_job_can_not_ride_on_another_session() -> None:
    admission = Admission(10)
    assert admission.link_up() == []
    begun, once, stubborn, fine = (job(admission, 0.0, redeliver=n != 1) for n in range(4))
    assert all(admission.take(each) for each in (begun, once, stubborn, fine))
    begun.begun = True
    stubborn.deliveries = MAX_DELIVERIES
    lost = {item.job: item.message for item in admission.link_down(1.0)}
    assert set(lost) == {begun, once, stubborn}
    assert "under way" in lost[begun]
    assert "may not run twice" in lost[once]
    assert f"{MAX_DELIVERIES} times" in lost[stubborn]
    assert admission.link_up() == [fine]
    assert (fine.deliveries, admission.redelivered) == (2, 1)


def test_a_job_that_was_never_handed_over_may_wait_even_if_it_must_not_run_twice() -> None:
    admission = Admission(10)
    waiting = job(admission, 0.0, redeliver=False)
    assert not admission.take(waiting)
    assert admission.expire(1.0) == []
    assert admission.link_up() == [waiting]


@pytest.mark.parametrize(("max_queue_time_s", "waits_s"), [(0.0, 5.0), (12.0, 12.0), (1e9, 30.0)])
def test_how_long_a_job_waits_for_an_adapter(max_queue_time_s: float, waits_s: float) -> None:
    admission = Admission(10)
    waiting = job(admission, 100.0, max_queue_time_s=max_queue_time_s)
    admission.take(waiting)
    assert admission.expire(100.0 + waits_s) == []
    (lost,) = admission.expire(100.1 + waits_s)
    assert (lost.job, lost.kind) == (waiting, "adapter_down")
    assert admission.settle(waiting.submit.id) is None


def test_a_job_waits_from_the_moment_the_adapter_went_away() -> None:
    admission = Admission(10)
    admission.link_up()
    running = job(admission, 0.0, expires_at=200.0)
    admission.take(running)
    assert admission.expire(150.0) == []
    assert admission.link_down(190.0) == []
    assert admission.expire(200.0) == []
    (lost,) = admission.expire(200.1)
    assert lost.kind == "expired"


def test_when_no_adapter_comes_any_more_nobody_waits_for_one() -> None:
    admission = Admission(MAX_JOBS)
    begun, waiting = (job(admission, 0.0) for _ in range(2))
    admission.link_up()
    for each in (begun, waiting):
        admission.take(each)
    begun.begun = True
    lost = admission.give_up()
    assert [item.job for item in lost] == [begun, waiting]
    assert {item.kind for item in lost} == {"adapter_down"}
    assert not admission.jobs and admission.link_down(1.0) == admission.expire(100.0) == []


def test_who_was_given_back_waits_no_longer_than_it_would_without_an_adapter() -> None:
    """One that is being restarted lets a stream end first, which may take long."""
    admission = Admission(10)
    admission.link_up()
    soon, late = (job(admission, 0.0, max_queue_time_s=s) for s in (1.0, 20.0))
    assert admission.take(soon) and admission.take(late)
    assert admission.keep(soon.submit.id, 1.0) and admission.keep(late.submit.id, 1.0)
    assert admission.expire(1.0 + RESTART_S) == []
    (lost,) = admission.expire(1.1 + RESTART_S)
    assert (lost.job, lost.kind) == (soon, "adapter_down") and "being restarted" in lost.message
    admission.link_down(15.0)
    assert admission.expire(34.0) == [] and admission.link_up() == [late]
    assert admission.expire(1000.0) == [], "the next adapter decides"


def test_what_has_ended_is_not_kept() -> None:
    admission = Admission(10)
    assert not admission.keep(1, 0.0)
