"""The outbox: what is posted when, over addresses and disks that fail."""

from __future__ import annotations

import math
from itertools import pairwise

from reporter import outbox as rules
from reporter.delivery import HOME_AFTER_S, Delivery
from reporter.outbox import ALL_ROWS, LoadRows, Outbox, PostRequests, PostStatus
from reporter.records import DropRows, Row
from supervisor.settings import EngineSettings

A = "http://a"
B = "http://b"


def settings(*addresses: str, **changes: float) -> EngineSettings:
    given: dict[str, float] = {"report_every_s": 10.0, "tries": 3, "retry_s": 2.0}
    return EngineSettings(addresses=list(addresses), **{**given, **changes})  # type: ignore[arg-type]


def rows(first_id: int, count: int) -> tuple[Row, ...]:
    return tuple(
        Row(first_id + n, 5000 + first_id + n, "Success", 1.0, 2.0, 3.0) for n in range(count)
    )


def quiet(*addresses: str) -> Outbox:
    """An outbox whose first status report is accepted at 0.0."""
    outbox = Outbox(settings(*addresses))
    assert outbox.step(0.0) == [PostStatus(addresses[0])]
    outbox.status_done(True, 0.0)
    return outbox


# ----------------------------------------------------------------------------------- status


def test_the_first_report_goes_at_once_then_every_ten_seconds() -> None:
    outbox = quiet(A)
    assert outbox.wake_at() == 10.0
    assert outbox.step(9.9) == []
    assert outbox.step(10.0) == [PostStatus(A)]
    assert outbox.step(30.0) == []  # one in flight at most
    outbox.status_done(True, 30.0)
    assert outbox.step(30.0) == [PostStatus(A)]


def test_a_change_is_reported_at_once_but_not_more_than_once_a_second() -> None:
    outbox = quiet(A)
    outbox.changed()
    assert outbox.wake_at() == 1.0
    assert outbox.step(0.5) == []
    assert outbox.step(1.0) == [PostStatus(A)]
    outbox.changed()  # while the post is under way
    outbox.status_done(True, 1.1)
    assert outbox.step(1.1) == []
    assert outbox.step(2.0) == [PostStatus(A)]
    outbox.status_done(True, 2.0)
    assert outbox.step(3.0) == []


def test_a_report_that_failed_is_tried_again_then_elsewhere_then_with_pauses() -> None:
    outbox = Outbox(settings(A, B))
    begun: list[tuple[float, str]] = []
    now = 0.0
    while now < 100.0:
        for command in outbox.step(now):
            assert isinstance(command, PostStatus)
            begun.append((now, command.address))
            outbox.status_done(False, now)
        now = max(now + 0.25, outbox.wake_at())
    assert [address for _, address in begun[:8]] == [A, A, A, B, B, B, A, A]
    gaps = [round(after - before, 2) for (before, _), (after, _) in pairwise(begun)]
    assert gaps[:2] == [2.0, 2.0]
    assert gaps[2] == 1.0  # the next address, but not within the same second
    assert gaps[3:5] == [2.0, 2.0]
    assert gaps[5] == 2.0  # the first pause after a whole round
    assert gaps[11] == 4.0  # and the second
    assert outbox.status.failed == len(begun)


def test_pauses_end_at_thirty_seconds() -> None:
    delivery = Delivery([A], tries=1, retry_s=0.0)
    pauses = []
    now = 0.0
    for _ in range(8):
        now = max(now, delivery.due_at)
        delivery.begin(now)
        delivery.failed_at(now)
        pauses.append(delivery.due_at - now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_the_first_address_is_home() -> None:
    delivery = Delivery([A, B], tries=1, retry_s=2.0)
    assert delivery.begin(0.0) == A
    delivery.failed_at(0.0)
    assert delivery.begin(0.0) == B
    delivery.succeeded()
    assert delivery.begin(HOME_AFTER_S - 1.0) == B
    delivery.succeeded()
    assert delivery.begin(HOME_AFTER_S) == A
    delivery.succeeded()
    assert (delivery.posted, delivery.failed) == (3, 1)


# --------------------------------------------------------------------------------- requests


def test_rows_leave_when_they_are_acknowledged() -> None:
    outbox = quiet(A)
    outbox.add(())
    outbox.add(rows(1, 2))
    assert outbox.waiting == 2
    (post,) = outbox.step(0.0)
    assert post == PostRequests(A, rows(1, 2))
    outbox.add(rows(3, 1))
    outbox.requests_done(False, 0.5)
    assert outbox.step(1.0) == []
    assert outbox.step(2.5) == [PostRequests(A, rows(1, 2))]  # the same rows, not one more
    outbox.requests_done(True, 2.6)
    assert outbox.wake_at() == -math.inf
    assert outbox.step(2.7) == [DropRows(2)]
    assert outbox.delivered_through_id == 2
    assert outbox.rows == rows(3, 1)
    assert outbox.step(3.4) == []  # at most each second
    assert outbox.step(3.5) == [PostRequests(A, rows(3, 1))]


def test_many_rows_go_without_a_pause_so_many_a_post() -> None:
    outbox = quiet(A)
    outbox.add(rows(1, 9_000))
    sizes = []
    for _ in range(2):
        post = outbox.step(0.0)[-1]
        assert isinstance(post, PostRequests)
        sizes.append(len(post.rows))
        outbox.requests_done(True, 0.0)
    assert sizes == [4_000, 4_000]
    assert outbox.step(0.5) == [DropRows(8_000)]
    assert outbox.step(1.0) == [PostRequests(A, rows(8_001, 1_000))]


def test_the_two_kinds_do_not_wait_for_each_other() -> None:
    outbox = Outbox(settings(A))
    outbox.add(rows(1, 1))
    assert outbox.step(0.0) == [PostStatus(A), PostRequests(A, rows(1, 1))]
    outbox.requests_done(True, 0.1)
    outbox.add(rows(2, 1))
    assert outbox.step(1.0) == [DropRows(1), PostRequests(A, rows(2, 1))]


def test_the_status_only_address_gets_no_rows() -> None:
    odd = "https://cloud.vast.ai/api/v0/"
    outbox = Outbox(settings(odd, A))
    outbox.add(rows(1, 1))
    assert outbox.step(0.0) == [PostStatus(odd), PostRequests(A, rows(1, 1))]


def test_rows_that_nobody_wants_are_not_kept() -> None:
    outbox = Outbox(settings(), rows(1, 3), more_rows=4)
    assert outbox.step(0.0) == [DropRows(ALL_ROWS)]
    outbox.add(rows(9, 2))
    assert outbox.waiting == 0
    assert outbox.step(0.0) == [DropRows(10)]
    outbox.changed()
    assert outbox.wake_at() == math.inf
    assert outbox.idle


def test_rows_of_an_earlier_life_go_first() -> None:
    outbox = Outbox(settings(A), rows(1, 2))
    outbox.add(rows(3, 1))
    assert outbox.step(0.0)[-1] == PostRequests(A, rows(1, 3))


# ------------------------------------------------------------------------------ beyond memory


def full_outbox() -> Outbox:
    outbox = quiet(A)
    outbox.add(rows(1, rules.MEMORY_ROWS - 1))
    outbox.add(rows(rules.MEMORY_ROWS, 3))  # one here, two only in the store
    return outbox


def drain(outbox: Outbox, now: float = 1.0) -> LoadRows:
    """Accept posts until the outbox asks for stored rows."""
    while True:
        for command in outbox.step(now):
            if isinstance(command, PostRequests):
                outbox.requests_done(True, now)
            elif isinstance(command, PostStatus):
                outbox.status_done(True, now)
            elif isinstance(command, LoadRows):
                return command


def test_rows_beyond_memory_come_back_from_the_store_in_order() -> None:
    outbox = full_outbox()
    assert outbox.waiting == rules.MEMORY_ROWS + 2
    assert len(outbox.rows) == rules.MEMORY_ROWS
    outbox.add(rows(rules.MEMORY_ROWS + 3, 1))  # goes behind those two, so into the store as well
    load = drain(outbox)
    assert load == LoadRows(rules.MEMORY_ROWS, rules.PAGE_ROWS)
    assert not any(isinstance(command, LoadRows) for command in outbox.step(1.0))
    outbox.page(rows(rules.MEMORY_ROWS + 1, 3), 1.0)
    assert outbox.rows[-1].id == rules.MEMORY_ROWS + 3
    outbox.add(rows(rules.MEMORY_ROWS + 4, 1))  # the store holds none that is older: into memory
    assert outbox.rows[-1].id == rules.MEMORY_ROWS + 4
    assert outbox.dropped == 0


def test_a_store_that_fails_to_read_is_asked_again() -> None:
    outbox = full_outbox()
    drain(outbox)
    outbox.page(None, 1.0)
    assert not any(isinstance(command, LoadRows) for command in outbox.step(1.0))
    again = outbox.step(1.0 + rules.PAGE_RETRY_S)
    assert any(isinstance(command, LoadRows) for command in again)


def test_rows_that_the_store_lost_are_counted() -> None:
    outbox = full_outbox()
    drain(outbox)
    outbox.page((), 1.0)
    assert outbox.dropped == 2
    assert outbox.waiting == len(outbox.rows)


def test_without_a_store_rows_beyond_memory_are_dropped_and_counted() -> None:
    outbox = quiet(A)
    outbox.store_ok = False
    outbox.add(rows(1, rules.MEMORY_ROWS + 5))
    assert outbox.dropped == 5
    assert outbox.waiting == rules.MEMORY_ROWS


# ------------------------------------------------------------------------------------- the end


def test_flush_sends_all_at_once() -> None:
    outbox = quiet(A)
    outbox.add(rows(1, 1))
    outbox.step(0.0)
    outbox.requests_done(False, 0.0)
    outbox.add(rows(2, 1))
    assert outbox.step(0.1) == []
    outbox.flush()
    assert not outbox.idle
    assert outbox.step(0.1) == [PostStatus(A), PostRequests(A, rows(1, 1))]
    assert not outbox.idle
    outbox.status_done(True, 0.2)
    outbox.requests_done(True, 0.2)
    assert outbox.step(0.2) == [DropRows(1), PostRequests(A, rows(2, 1))]
    outbox.requests_done(True, 0.3)
    assert outbox.idle


def test_flush_keeps_the_pauses_of_an_engine_that_is_away() -> None:
    outbox = quiet(A)
    outbox.flush()
    assert outbox.step(0.1) == [PostStatus(A)]
    outbox.status_done(False, 0.2)
    assert outbox.step(0.3) == []
    assert outbox.wake_at() == 2.2
    assert not outbox.idle
