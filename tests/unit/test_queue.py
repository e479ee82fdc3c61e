"""The queue, event by event: ``script`` lines say what goes in and which commands come out."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backend_adapter.jobs import Abort, Command, Dispatch, Fail, Job, Reject
from backend_adapter.messages import Submit
from backend_adapter.queue import Queue
from backend_adapter.refusals import MIN_RETRY_S


def make(up: bool = True, **bounds: int) -> Queue:
    defaults = {"max_jobs": 100, "max_bytes": 10_000, "max_running": 50, "max_attempts": 2}
    queue = Queue(**{**defaults, **bounds})
    if up:
        assert list(queue.backend_up(0.0)) == []
    return queue


def job(
    id: int,
    lane: str = "serial",
    limit: int = 1,
    workload: float = 1.0,
    wait_s: float = math.inf,
    expires_at: float = math.inf,
    redeliver: bool = True,
    size: int = 10,
    peer: str = "ingress-0",
    hosted: bool = False,
) -> Job:
    submit = Submit(
        id=id,
        path="/x",
        lane=lane,
        lane_limit=limit,
        workload=workload,
        max_queue_time_s=wait_s,
        expires_at=expires_at,
        credit=1,
        redeliver=redeliver,
        body=bytes(size),
        hosted=hosted,
    )
    return Job((peer, id), submit)


def key(id: int, peer: str = "ingress-0") -> tuple[str, int]:
    return peer, id


def said(commands: Sequence[Command]) -> list[tuple[Any, ...]]:
    """Commands without their prose."""
    words: list[tuple[Any, ...]] = []
    for command in commands:
        id = command.job.key[1]
        if isinstance(command, Dispatch):
            words.append(("dispatch", id))
        elif isinstance(command, Abort):
            words.append(("abort", id))
        elif isinstance(command, Fail):
            assert command.message
            words.append(("fail", id, command.kind))
        else:
            assert command.message
            words.append(("reject", id, command.kind))
    return words


def conserved(queue: Queue) -> bool:
    t = queue.totals
    return t.received == t.served + t.errored + t.cancelled + t.rejected + queue.outstanding


# ----------------------------------------------------------------------- order and slots


def test_serial_lane_is_strictly_fifo() -> None:
    queue = make()
    assert said(queue.submit(job(1), 0.0)) == [("dispatch", 1)]
    assert said(queue.submit(job(2), 0.0)) == []
    assert said(queue.submit(job(3), 0.0)) == []
    assert (queue.waiting, queue.running) == (2, 1)
    assert said(queue.finished(key(1), True, 1.0)) == [("dispatch", 2)]
    assert said(queue.finished(key(2), False, 2.0)) == [("dispatch", 3)]
    assert said(queue.finished(key(3), True, 3.0)) == []
    totals = queue.totals
    assert (totals.received, totals.served, totals.errored) == (3.0, 2.0, 1.0)
    assert totals.requests == 3
    assert conserved(queue)


def test_lane_limit_and_lane_without_one() -> None:
    queue = make()
    commands = [said(queue.submit(job(i, "two", limit=2), 0.0)) for i in range(4)]
    assert commands == [[("dispatch", 0)], [("dispatch", 1)], [], []]
    commands = [said(queue.submit(job(10 + i, "free", limit=0), 0.0)) for i in range(4)]
    assert all(commands)


def test_maximum_over_all_lanes_and_the_oldest_first_between_them() -> None:
    queue = make(max_running=1)
    queue.submit(job(1, "a", 0), 0.0)
    for id, lane in ((2, "b"), (3, "a"), (4, "c"), (5, "b")):
        assert said(queue.submit(job(id, lane, 0), 0.0)) == []
    order = []
    current = 1
    while commands := said(queue.finished(key(current), True, 1.0)):
        (_, current), *rest = commands
        assert not rest
        order.append(current)
    assert order == [2, 3, 4, 5]


def test_retried_jobs_keep_their_old_order_whichever_is_lost_first() -> None:
    queue = make(max_attempts=5)
    for id in range(5):
        queue.submit(job(id, "three", limit=3), 0.0)
    queue.backend_down("it died")
    for id in (2, 0, 1):
        assert said(queue.lost(key(id), True, "it died", 1.0)) == []
    assert queue.retried == 3
    assert said(queue.backend_up(2.0)) == [("dispatch", 0), ("dispatch", 1), ("dispatch", 2)]
    assert said(queue.finished(key(1), True, 3.0)) == [("dispatch", 3)]


def test_raised_limit_lets_more_run() -> None:
    queue = make()
    for id in range(3):
        queue.submit(job(id, "x", limit=1), 0.0)
    raised = queue.submit(job(3, "x", limit=3), 0.0)
    assert said(raised) == [("dispatch", 1), ("dispatch", 2)]


def test_key_that_is_known_is_ignored() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    assert said(queue.submit(job(1), 0.0)) == []
    assert queue.totals.requests == 1
    queue.finished(key(1), True, 0.0)
    assert said(queue.submit(job(1), 0.0)) == [("dispatch", 1)]


def test_events_about_a_job_that_has_ended_do_nothing() -> None:
    queue = make()
    queue.began(key(1))
    for commands in (
        queue.cancel(key(1), 0.0),
        queue.finished(key(1), True, 0.0),
        queue.lost(key(1), False, "x", 0.0),
        queue.broken(key(1), "model_failed", "x", 0.0),
    ):
        assert list(commands) == []
    assert queue.up


@pytest.mark.parametrize(
    "event",
    [
        lambda queue: queue.began(key(1)),
        lambda queue: queue.finished(key(1), True, 0.0),
        lambda queue: queue.lost(key(1), True, "", 0.0),
        lambda queue: queue.broken(key(1), "model_failed", "", 0.0),
    ],
)
def test_news_of_a_job_that_was_never_sent_is_a_bug(event: Callable[[Queue], object]) -> None:
    queue = make(up=False)
    queue.submit(job(1), 0.0)
    with pytest.raises(RuntimeError, match="waiting"):
        event(queue)


# ----------------------------------------------------------------------- cancel


def test_cancelled_job_frees_its_slot_at_once() -> None:
    queue = make()
    for id in range(3):
        queue.submit(job(id), 0.0)
    assert said(queue.cancel(key(1), 0.0)) == []
    assert said(queue.cancel(key(0), 0.0)) == [("abort", 0), ("dispatch", 2)]
    assert queue.totals.cancelled == 2.0
    assert conserved(queue)


def test_peer_that_left_gets_no_slot_on_the_way_out() -> None:
    queue = make()
    queue.submit(job(1, peer="a"), 0.0)
    queue.submit(job(2, peer="a"), 0.0)
    queue.submit(job(2, peer="b"), 0.0)
    queue.submit(job(3, peer="a"), 0.0)
    commands = queue.cancel_peer("a", 0.0)
    assert said(commands) == [("abort", 1), ("dispatch", 2)]
    assert commands[1].job.key == ("b", 2)
    assert (queue.waiting, queue.running) == (0, 1)
    assert (queue.held_bytes, queue.waiting_bytes) == (10, 0)


# ----------------------------------------------------------------------- retries


def test_lost_after_sending_is_retried_until_the_attempts_are_spent() -> None:
    queue = make(max_attempts=2)
    queue.submit(job(1), 0.0)
    assert said(queue.lost(key(1), True, "reset", 1.0)) == [("dispatch", 1)]
    assert said(queue.lost(key(1), True, "reset", 2.0)) == [("fail", 1, "model_failed")]
    assert queue.totals.errored == 1.0


def test_job_that_must_not_run_twice_is_not_retried_unless_it_was_never_sent() -> None:
    queue = make()
    queue.submit(job(1, redeliver=False), 0.0)
    assert said(queue.lost(key(1), False, "refused", 1.0)) == []
    assert said(queue.backend_up(1.0)) == [("dispatch", 1)]
    assert said(queue.lost(key(1), True, "reset", 1.0)) == [("fail", 1, "model_failed")]


def test_refused_connection_costs_no_attempt_and_holds_dispatch() -> None:
    queue = make(max_attempts=1)
    queue.submit(job(1), 0.0)
    for _ in range(5):
        assert said(queue.lost(key(1), False, "refused", 1.0)) == []
        assert not queue.up
        assert said(queue.submit(job(2, "other", 0), 1.0)) == []
        queue.cancel(key(2), 1.0)
        assert said(queue.backend_up(1.0)) == [("dispatch", 1)]


def test_begun_response_is_never_retried() -> None:
    for sent in (True, False):
        queue = make(max_attempts=10)
        queue.submit(job(1), 0.0)
        queue.began(key(1))
        assert said(queue.lost(key(1), sent, "reset", 1.0)) == [("fail", 1, "model_failed")]


def test_broken_response_fails_as_its_kind_and_the_next_one_runs() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.submit(job(2), 0.0)
    queue.began(key(1))
    commands = queue.broken(key(1), "model_timeout", "silence", 1.0)
    assert said(commands) == [("fail", 1, "model_timeout"), ("dispatch", 2)]


# ----------------------------------------------------------------------- the model server


def test_nothing_is_dispatched_before_the_model_server_is_up() -> None:
    queue = make(up=False)
    assert said(queue.submit(job(1), 0.0)) == []
    assert said(queue.submit(job(2, "free", 0), 0.0)) == []
    assert said(queue.backend_up(1.0)) == [("dispatch", 1), ("dispatch", 2)]


def test_failure_for_good_refuses_what_waits_and_what_comes_until_it_is_up() -> None:
    queue = make(max_attempts=3)
    queue.submit(job(1), 0.0)
    queue.submit(job(2), 0.0)
    queue.lost(key(1), True, "reset", 0.0)  # sent once, and dispatched again
    queue.backend_down("exit 3")
    commands = queue.backend_failed("ten restarts in ten minutes", 1.0)
    assert said(commands) == [("reject", 2, "model_down")]
    assert "ten restarts" in commands[0].message  # type: ignore[union-attr]
    queue.backend_down("something else")
    refusal = queue.submit(job(3), 1.0)[0]
    assert said([refusal]) == [("reject", 3, "model_down")]
    assert "ten restarts" in refusal.message  # type: ignore[union-attr]
    assert said(queue.lost(key(1), True, "gone", 1.0)) == [("fail", 1, "model_failed")]
    queue.backend_up(2.0)
    assert said(queue.submit(job(4), 2.0)) == [("dispatch", 4)]
    assert conserved(queue)


def test_failure_for_good_and_then_a_connection_is_refused() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.backend_failed("budget", 0.0)
    assert said(queue.lost(key(1), False, "refused", 0.0)) == [("reject", 1, "model_down")]


def test_retried_job_that_waits_when_the_model_server_fails_for_good() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.backend_down("died")
    queue.lost(key(1), True, "died", 0.0)
    assert said(queue.backend_failed("budget", 1.0)) == [("fail", 1, "model_failed")]


def test_drain_refuses_new_jobs_and_finishes_the_others() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.submit(job(2), 0.0)
    queue.drain()
    assert said(queue.submit(job(3), 0.0)) == [("reject", 3, "draining")]
    assert said(queue.lost(key(1), True, "reset", 0.0)) == [("dispatch", 1)]
    assert said(queue.finished(key(1), True, 0.0)) == [("dispatch", 2)]


# ----------------------------------------------------------------------- admission


def only_refusal(commands: Sequence[Command]) -> Reject:
    (command,) = commands
    assert isinstance(command, Reject)
    return command


def test_too_many_waiting() -> None:
    queue = make(max_jobs=2)
    for id in range(3):
        queue.submit(job(id), 0.0)
    refusal = only_refusal(queue.submit(job(3), 0.0))
    assert (refusal.kind, refusal.position) == ("queue_full", 3)
    assert refusal.retry_after_s == MIN_RETRY_S
    assert only_refusal(queue.submit(job(4, "other"), 0.0)).position == 1
    assert conserved(queue)


def test_too_many_bytes_waiting_or_running() -> None:
    queue = make(max_bytes=100)
    queue.submit(job(1, size=60), 0.0)
    queue.submit(job(2, size=40), 0.0)
    assert (queue.held_bytes, queue.waiting_bytes) == (100, 40)
    assert only_refusal(queue.submit(job(3, size=1), 0.0)).kind == "queue_full"
    assert said(queue.submit(job(4, "free", 0, size=0), 0.0)) == [("dispatch", 4)]
    queue.finished(key(1), True, 0.0)
    assert (queue.held_bytes, queue.waiting_bytes) == (40, 0)
    queue.submit(job(5, size=60), 0.0)
    assert queue.held_bytes == 100


def test_expected_wait_over_the_allowed_one_is_refused_with_the_difference() -> None:
    queue = make()
    queue.set_capacity(10.0)
    queue.submit(job(1, workload=200.0), 0.0)
    queue.submit(job(2, workload=100.0), 0.0)
    assert said(queue.submit(job(3, wait_s=30.0, workload=0.0), 0.0)) == []  # exactly: it may
    queue.submit(job(4, workload=50.0), 0.0)
    refusal = only_refusal(queue.submit(job(5, wait_s=30.0), 0.0))
    assert (refusal.kind, refusal.retry_after_s, refusal.position) == ("queue_time", 5.0, 4)
    near = only_refusal(queue.submit(job(6, wait_s=34.9), 0.0))
    assert near.retry_after_s == MIN_RETRY_S
    queue.set_capacity(0.0)
    assert said(queue.submit(job(7, wait_s=30.0), 0.0)) == []


def test_job_that_may_not_wait_at_all_is_refused_when_the_worker_is_busy() -> None:
    queue = make()
    assert said(queue.submit(job(1, wait_s=0.0), 5.0)) == [("dispatch", 1)]
    refusal = only_refusal(queue.submit(job(2, "other", wait_s=0.0), 5.0))
    assert (refusal.kind, refusal.retry_after_s, refusal.position) == ("queue_time", 1.0, 1)


def test_job_that_comes_too_late() -> None:
    queue = make()
    assert said(queue.submit(job(1, expires_at=5.0), 5.0)) == [("fail", 1, "expired")]
    assert queue.totals.errored == 1.0
    assert conserved(queue)


# ----------------------------------------------------------------------- deadlines


def test_job_that_waited_too_long() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.submit(job(2, wait_s=5.0), 1.0)
    assert queue.next_deadline() == 6.0
    assert said(queue.expire(5.9)) == []
    refusal = only_refusal(queue.expire(6.0))
    assert (refusal.kind, refusal.job.key) == ("queue_time", key(2))
    assert queue.next_deadline() is None
    assert queue.totals.rejected == 1.0


def test_job_that_waited_too_long_for_the_model_server() -> None:
    queue = make(up=False)
    queue.submit(job(1, wait_s=5.0), 0.0)
    queue.backend_down("loading the weights")
    refusal = only_refusal(queue.expire(5.0))
    assert refusal.kind == "not_ready"
    assert "loading the weights" in refusal.message


def test_time_on_the_model_server_is_not_waiting_but_both_waits_add_up() -> None:
    queue = make()
    queue.submit(job(0), 0.0)
    queue.submit(job(1, wait_s=5.0), 0.0)
    queue.finished(key(0), True, 3.0)
    queue.backend_down("died")
    queue.lost(key(1), True, "died", 100.0)
    assert queue.next_deadline() == 102.0
    assert said(queue.expire(102.0)) == [("fail", 1, "model_failed")]  # it was sent: no refusal


def test_nobody_wants_the_answer_any_more() -> None:
    queue = make()
    queue.submit(job(1, expires_at=10.0), 0.0)
    queue.submit(job(2, expires_at=10.0), 0.0)
    queue.submit(job(3), 0.0)
    queue.began(key(1))
    assert queue.next_deadline() == 10.0
    assert said(queue.expire(10.0)) == [
        ("abort", 1),
        ("fail", 1, "expired"),
        ("fail", 2, "expired"),
        ("dispatch", 3),
    ]


def test_overdue_job_is_not_dispatched_even_before_anyone_looked() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.submit(job(2, wait_s=5.0), 0.0)
    queue.submit(job(3, expires_at=5.0), 0.0)
    queue.submit(job(4), 0.0)
    assert said(queue.finished(key(1), True, 6.0)) == [
        ("reject", 2, "queue_time"),
        ("fail", 3, "expired"),
        ("dispatch", 4),
    ]


def test_lost_job_that_expired_meanwhile() -> None:
    queue = make()
    queue.submit(job(1, expires_at=5.0), 0.0)
    assert said(queue.lost(key(1), True, "reset", 6.0)) == [("fail", 1, "expired")]
    assert queue.next_deadline() is None


def test_deadline_moves_when_a_waiting_job_is_dispatched() -> None:
    queue = make()
    queue.submit(job(1), 0.0)
    queue.submit(job(2, wait_s=5.0, expires_at=50.0), 0.0)
    queue.submit(job(3, wait_s=6.0), 0.0)
    queue.finished(key(1), True, 1.0)
    assert queue.next_deadline() == 6.0
    assert said(queue.expire(49.0)) == [("reject", 3, "queue_time")]
    assert queue.next_deadline() == 50.0
    assert said(queue.expire(50.0)) == [("abort", 2), ("fail", 2, "expired")]


# ----------------------------------------------------------------------- hosted jobs


def test_hosted_jobs_wait_alone_for_the_process_that_answers_them() -> None:
    queue = make()
    assert said(queue.submit(job(1, hosted=True), 0.0)) == [("dispatch", 1)]
    for id, hosted in ((2, True), (3, False), (4, True), (5, False)):
        assert said(queue.submit(job(id, hosted=hosted), 0.0)) == []
    assert said(queue.lost(key(1), False, "refused", 0.0)) == [("dispatch", 3)]
    assert queue.up, "the model server has nothing to do with it"
    assert said(queue.finished(key(3), True, 1.0)) == [("dispatch", 5)]
    assert said(queue.hosted_up(2.0)) == []
    assert said(queue.finished(key(5), True, 3.0)) == [("dispatch", 1)], "where it stood before"
    assert said(queue.finished(key(1), True, 3.0)) == [("dispatch", 2)]


def test_hosted_jobs_wait_no_longer_than_they_may_and_not_for_what_failed() -> None:
    queue = make()
    queue.hosted_down()
    queue.submit(job(1, hosted=True, wait_s=5.0), 0.0)
    queue.submit(job(2, "other", hosted=True), 0.0)
    assert said(queue.submit(job(3, "third"), 0.0)) == [("dispatch", 3)]
    assert said(queue.expire(6.0)) == [("reject", 1, "hooks_down")]
    assert said(queue.hosted_failed(7.0)) == [("reject", 2, "hooks_down")]
    assert said(queue.submit(job(4, hosted=True), 7.0)) == [("reject", 4, "hooks_down")]
    assert said(queue.submit(job(5, "fifth"), 7.0)) == [("dispatch", 5)]
    assert said(queue.hosted_up(8.0)) == []
    assert said(queue.submit(job(6, hosted=True), 8.0)) == [("dispatch", 6)]
    queue.hosted_failed(9.0)
    assert said(queue.lost(key(6), True, "it died", 9.0)) == [("fail", 6, "model_failed")]


# ----------------------------------------------------------------------- bounds


def entries(queue: Queue) -> int:
    """Entries in all heaps of the queue."""
    lanes = queue._lanes
    heaps = sum(len(line.heap) for lane in lanes._lanes.values() for line in lane.lines)
    return heaps + len(lanes.ready) + len(queue._deadlines._heap)


def test_what_was_cancelled_leaves_nothing_behind() -> None:
    queue = make(max_jobs=10_000, max_bytes=10**9)
    queue.submit(job(0), 0.0)
    queue.submit(job(1), 0.0)
    for id in range(2, 5000):  # a blocked lane
        queue.submit(job(id, wait_s=60.0), 0.0)
        queue.cancel(key(id), 0.0)
    for id in range(5000, 9000):  # a lane for each job, while nothing is dispatched
        queue.backend_down("x")
        queue.submit(job(id, f"lane-{id}"), 0.0)
        queue.cancel(key(id), 0.0)
    assert entries(queue) < 4 * 70
    assert len(queue._lanes._lanes) == 1
    assert (queue.waiting, queue.running, queue.held_bytes) == (1, 1, 20)


def test_rebuilt_heaps_still_know_everything() -> None:
    queue = make(up=False, max_jobs=10_000, max_bytes=10**9)
    for id in range(300):
        queue.submit(job(id, "x", 0, wait_s=10.0 + id), 0.0)
        queue.submit(job(1000 + id, f"lane-{id}", 0), 0.0)
    for id in range(10, 300):
        queue.cancel(key(id), 0.0)
        queue.cancel(key(1000 + id), 0.0)
    assert queue.next_deadline() == 10.0
    expected = [("dispatch", id) for n in range(10) for id in (n, 1000 + n)]
    assert said(queue.backend_up(0.0)) == expected


def calls(work: Callable[[], object]) -> int:
    """Function calls, of Python and C alike, that it takes to do this."""
    count = [0]

    def profile(frame: object, event: str, arg: object) -> None:
        count[0] += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # what is called at a collection is not what is counted
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count[0]


def test_blocked_lane_does_not_slow_the_others() -> None:
    def cost(blocked: int) -> int:
        queue = make(max_jobs=100_000, max_bytes=10**9)
        for id in range(blocked):
            queue.submit(job(id), 0.0)
        fresh = job(-1, "free", 0)
        return calls(lambda: (queue.submit(fresh, 0.0), queue.finished(key(-1), True, 0.0)))

    assert cost(20_000) <= cost(1)


def test_many_lanes_do_not_slow_each_other() -> None:
    def cost(lanes: int) -> int:
        queue = make(max_jobs=100_000, max_bytes=10**9, max_running=lanes)
        for id in range(lanes):
            queue.submit(job(id, f"lane-{id}"), 0.0)
            queue.submit(job(100_000 + id, f"lane-{id}"), 0.0)
        return calls(lambda: queue.finished(key(lanes // 2), True, 0.0))

    assert cost(5000) <= cost(1) + 10
