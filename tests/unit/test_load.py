"""The load: each rule of the accounts by itself (the machine in tests/properties mixes them)."""

from __future__ import annotations

import pytest

from reporter.ledger import pending
from reporter.load import GAP_PATIENCE_S, HELD_EVENTS, Facts, Load
from reporter.messages import Closed, Events, Opened, Outcome, Totals
from reporter.records import (
    DropLedger,
    LedgerRecord,
    Marks,
    OpenRequest,
    SaveBase,
    SaveLedger,
    SaveMarks,
    SaveRun,
    State,
)

OFFSET_S = 1_700_000_000.0


def facts(**changes: object) -> Facts:
    given: dict[str, object] = {
        "worker_id": 7,
        "version": "0",
        "url": "http://1.2.3.4:5",
        "error_msg": "",
        "load_time_s": 0.0,
        "generation": 0,
        "max_perf": 0.0,
        "disk_gb": 10.0,
    }
    return Facts(**{**given, **changes})  # type: ignore[arg-type]


def opened(key: int, workload: float = 100.0) -> Opened:
    return Opened(key, request_idx=1000 + key, workload=workload, at=5.0)


def closed(
    key: int, outcome: str = Outcome.SUCCESS, workload: float = 100.0, started_at: float = 6.0
) -> Closed:
    return Closed(key, 1000 + key, workload, outcome, 5.0, started_at, 7.0)


def batch(
    seq: int,
    opens: list[Opened] | None = None,
    closes: list[Closed] | None = None,
    totals: Totals | None = None,
    epoch: int = 1,
    producer: str = "ingress-0",
    refused: dict[str, int] | None = None,
) -> Events:
    return Events(
        producer, epoch, seq, opens or [], closes or [], totals or Totals(), refused or {}
    )


def new_load() -> Load:
    load = Load("run")
    load.adopt(State(run_id="run"))
    return load


def test_a_request_opens_and_ends() -> None:
    load = new_load()
    applied = load.apply(
        batch(1, [opened(1)], totals=Totals(received=100.0, requests=1)), 0.0, OFFSET_S
    )
    assert (applied.producer, applied.ack, applied.rows) == ("ingress-0", 1, ())
    assert load.working == [1001]
    assert pending(load.totals) == 100.0

    applied = load.apply(
        batch(2, closes=[closed(1)], totals=Totals(received=100.0, served=100.0, requests=1)),
        1.0,
        OFFSET_S,
    )
    assert applied.ack == 2
    assert [row.body() for row in applied.rows] == [
        {
            "request_idx": 1001,
            "success": True,
            "status": "Success",
            "entered_queue_at": OFFSET_S + 5.0,
            "work_started_at": OFFSET_S + 6.0,
            "work_completed_at": OFFSET_S + 7.0,
        }
    ]
    assert [each.key for each in applied.closed] == [1]
    assert load.working == []
    assert pending(load.totals) == 0.0
    assert load.drift == 0


@pytest.mark.parametrize(
    ("outcome", "success", "completed_at"),
    [
        (Outcome.SUCCESS, True, OFFSET_S + 7.0),
        (Outcome.ERROR, False, OFFSET_S + 7.0),
        (Outcome.CANCELLED, True, 0.0),
        (Outcome.REJECTED, False, 0.0),
    ],
)
def test_a_row_says_what_happened(outcome: Outcome, success: bool, completed_at: float) -> None:
    load = new_load()
    (row,) = load.apply(batch(1, closes=[closed(1, outcome, started_at=0.0)]), 0.0, OFFSET_S).rows
    body = row.body()
    assert body["status"] == outcome.value
    assert body["success"] is success
    assert body["work_started_at"] == 0.0
    assert body["work_completed_at"] == completed_at


def test_an_outcome_of_another_version_counts_as_an_error() -> None:
    load = new_load()
    totals = Totals(received=100.0, errored=100.0, requests=1)
    (row,) = load.apply(batch(1, closes=[closed(1, "Vanished")], totals=totals), 0.0, 0.0).rows
    assert row.status == "Error"
    assert load.drift == 0


def test_a_negative_index_is_load_but_no_row() -> None:
    load = new_load()
    load.apply(batch(1, [Opened(1, -1, 100.0, 5.0)], totals=Totals(received=100.0)), 0.0, OFFSET_S)
    assert load.working == []
    assert pending(load.totals) == 100.0
    ended = Closed(1, -1, 100.0, Outcome.SUCCESS, 5.0, 6.0, 7.0)
    totals = Totals(received=100.0, served=100.0)
    assert load.apply(batch(2, closes=[ended], totals=totals), 0.0, OFFSET_S).rows == ()
    assert load.drift == 0


def test_a_repeated_batch_is_acknowledged_and_counts_once() -> None:
    load = new_load()
    first = batch(1, closes=[closed(1)], totals=Totals(received=100.0, served=100.0, requests=1))
    load.apply(first, 0.0, 0.0)
    again = load.apply(first, 0.0, 0.0)
    assert (again.ack, again.rows, again.closed) == (1, (), ())
    # The acknowledgement waits in the store's queue, behind the commit that it stands for.
    assert again.changes == (SaveLedger(LedgerRecord("ingress-0", 1, 1, first.totals)),)
    assert load.totals.served == 100.0


def test_an_early_batch_waits_for_the_one_before() -> None:
    load = new_load()
    second = batch(2, closes=[closed(1)], totals=Totals(received=100.0, served=100.0))
    assert load.apply(second, 0.0, 0.0).ack is None
    assert load.apply(second, 0.1, 0.0).ack is None
    assert load.totals == Totals()
    assert load.tick(0.2, 0.0) == []
    applied = load.apply(batch(1, [opened(1)], totals=Totals(received=100.0)), 0.3, 0.0)
    assert applied.ack == 2
    assert len(applied.rows) == 1
    assert load.drift == load.gaps == 0
    assert load.tick(100.0, 0.0) == []


def test_an_open_request_announced_twice_counts_once() -> None:
    load = new_load()
    load.apply(batch(1, [opened(1)], totals=Totals(received=100.0)), 0.0, 0.0)
    load.apply(batch(2, [opened(1)], totals=Totals(received=100.0)), 0.0, 0.0)
    assert load.working == [1001]
    assert load.drift == 0


def test_totals_are_believed_where_events_disagree() -> None:
    load = new_load()
    totals = Totals(received=300.0, served=200.0, requests=3)
    load.apply(batch(1, [opened(1)], totals=totals), 0.0, 0.0)
    assert load.drift == 1
    assert load.totals == totals
    load.apply(
        batch(2, closes=[closed(1)], totals=Totals(received=300.0, served=300.0, requests=3)),
        0.0,
        0.0,
    )
    assert load.drift == 1


def test_lost_state_goes_on_after_patience_and_reports_nothing_twice() -> None:
    load = new_load()
    load.apply(batch(1, [opened(1)], totals=Totals(received=100.0)), 0.0, 0.0)
    # Batches 2 and 3 were acknowledged, reported, and then lost with the store.
    late = batch(
        4,
        [opened(9)],
        totals=Totals(received=1000.0, served=700.0, rejected=100.0, requests=10),
    )
    assert load.apply(late, 10.0, 0.0).ack is None
    assert load.tick(10.0 + GAP_PATIENCE_S / 2, 0.0) == []
    (applied,) = load.tick(10.0 + GAP_PATIENCE_S, 0.0)
    assert (applied.producer, applied.ack) == ("ingress-0", 4)
    assert load.gaps == 1
    assert load.working == [1009]
    body = load.status_report(facts()).body
    # Batch 1's 100 and batch 4's 100 are known from events and were not reported.
    assert (body["new_load"], body["cur_perf"], body["rej_load"]) == (200.0, 0.0, 0.0)
    assert body["cur_load"] == 200.0
    follow = Totals(received=1000.0, served=800.0, rejected=100.0, requests=10)
    load.apply(batch(5, closes=[closed(9)], totals=follow), 20.0, 0.0)
    assert load.status_report(facts()).body["cur_perf"] == 100.0
    assert load.drift == 0


def test_a_session_stands_for_what_runs_inside_it() -> None:
    load = new_load()
    session = Totals(received=10.0, requests=1)
    load.apply(batch(1, [opened(1, 10.0)], totals=session, producer="backend_adapter"), 0.0, 0.0)
    inner = Opened(1, -1, 300.0, 5.0)
    load.apply(batch(1, [inner], totals=Totals(received=300.0, inside=300.0)), 0.0, 0.0)
    body = load.status_report(facts()).body
    assert (body["cur_load"], body["new_load"], body["num_requests_recieved"]) == (10.0, 310.0, 1)
    assert body["working_request_idxs"] == [1001]
    assert pending(load.totals) == 310.0
    # Its ingress dies: what was inside is over.
    load.apply(batch(1, epoch=2), 0.0, 0.0)
    assert load.status_report(facts()).body["cur_load"] == 10.0
    assert load.totals.inside == 0.0
    assert load.drift == 0


def test_too_much_held_is_not_waited_for() -> None:
    load = new_load()
    flood = batch(2, closes=[closed(key) for key in range(HELD_EVENTS + 1)])
    assert load.apply(flood, 0.0, 0.0).ack == 2
    assert load.gaps == 1


def test_a_new_epoch_cancels_what_the_old_one_had_open() -> None:
    load = new_load()
    load.apply(
        batch(1, [opened(1)], totals=Totals(received=100.0, requests=1), refused={"bad_json": 2}),
        0.0,
        OFFSET_S,
    )
    reborn = batch(
        1,
        [opened(1, 50.0)],
        totals=Totals(received=50.0, requests=1),
        epoch=2,
        refused={"bad_json": 1},
    )
    applied = load.apply(reborn, 1.0, OFFSET_S)
    assert applied.ack == 1
    assert [(row.request_idx, row.status) for row in applied.rows] == [(1001, "Cancelled")]
    assert load.totals == Totals(received=150.0, cancelled=100.0, requests=2)
    assert pending(load.totals) == 50.0
    assert load.refused == {"bad_json": 3}
    # What the dead process had under way changes nothing any more.
    late = load.apply(batch(2, closes=[closed(1)], totals=Totals(received=100.0)), 2.0, OFFSET_S)
    assert (late.ack, late.changes, late.rows) == (None, (), ())


def test_a_new_epoch_whose_first_batch_is_missing_still_ends_the_old_one() -> None:
    load = new_load()
    load.apply(batch(1, [opened(1)], totals=Totals(received=100.0, requests=1)), 0.0, 0.0)
    applied = load.apply(batch(2, epoch=2), 0.0, 0.0)
    assert applied.ack is None
    assert len(applied.rows) == 1
    assert DropLedger("ingress-0") in applied.changes
    assert load.apply(batch(0, epoch=3), 0.0, 0.0).ack == 0


def test_another_run_ends_what_the_last_one_left() -> None:
    state = State(
        run_id="before",
        base=Totals(received=10.0, served=10.0, requests=4),
        marks=Marks(served=10.0, processing=110.0, loaded_generation=3, disk_gb=9.0),
        ledgers=(LedgerRecord("ingress-0", 1, 5, Totals(received=100.0, requests=1)),),
        open={"ingress-0": (OpenRequest(1, 1001, 100.0, OFFSET_S),)},
        next_row_id=40,
    )
    load = Load("after")
    applied = load.adopt(state)
    assert [(row.id, row.request_idx, row.status) for row in applied.rows] == [
        (40, 1001, "Cancelled")
    ]
    assert SaveRun("after") in applied.changes
    assert SaveBase(load.totals) in applied.changes
    assert load.totals == Totals(received=110.0, served=10.0, cancelled=100.0)
    report = load.status_report(facts(load_time_s=3.0, generation=3))
    assert report.body["loadtime"] == 3.0
    assert report.body["num_requests_recieved"] == 0
    assert report.body["new_load"] == 0.0


def test_the_same_run_continues() -> None:
    load = new_load()
    load.apply(batch(1, [opened(1)], totals=Totals(received=100.0, requests=1)), 0.0, 0.0)
    again = Load("run")
    assert again.adopt(load.state((), 0)).changes == ()
    assert again.working == [1001]
    assert again.apply(batch(1), 0.0, 0.0).ack == 1
    assert again.totals == load.totals


def test_a_report_has_every_field_of_the_protocol() -> None:
    load = new_load()
    load.apply(
        batch(
            1,
            [opened(1)],
            [closed(2, Outcome.REJECTED), closed(3), closed(4, Outcome.CANCELLED)],
            Totals(received=400.0, served=100.0, cancelled=100.0, rejected=100.0, requests=4),
        ),
        0.0,
        0.0,
    )
    report = load.status_report(
        facts(load_time_s=12.5, generation=1, max_perf=50.0, error_msg="model: slow")
    )
    assert report.body == {
        "id": 7,
        "version": "0",
        "loadtime": 12.5,
        "new_load": 200.0,
        "cur_load": 100.0,
        "rej_load": 100.0,
        "max_perf": 50.0,
        "cur_perf": 100.0,
        "cur_capacity": 0,
        "max_capacity": 0,
        "error_msg": "model: slow",
        "num_requests_working": 1,
        "num_requests_recieved": 4,
        "additional_disk_usage": 0.0,
        "disk_usage": 10.0,
        "working_request_idxs": [1001],
        "url": "http://1.2.3.4:5",
    }
    for name in ("new_load", "cur_load", "rej_load", "max_perf", "cur_perf"):
        assert isinstance(report.body[name], float)


def test_differences_are_against_the_last_acknowledged_report() -> None:
    load = new_load()
    load.apply(batch(1, closes=[closed(1)], totals=Totals(100.0, 100.0)), 0.0, 0.0)
    lost = load.status_report(facts(load_time_s=2.0))
    assert lost.body["cur_perf"] == 100.0
    load.apply(batch(2, closes=[closed(2)], totals=Totals(200.0, 200.0)), 0.0, 0.0)
    report = load.status_report(facts(load_time_s=2.0, disk_gb=11.0))
    assert (report.body["cur_perf"], report.body["loadtime"]) == (200.0, 2.0)
    change = load.report_acknowledged(report)
    assert isinstance(change, SaveMarks)
    after = load.status_report(facts(load_time_s=2.0, disk_gb=11.5))
    assert (after.body["cur_perf"], after.body["loadtime"]) == (0.0, 0.0)
    assert after.body["additional_disk_usage"] == 0.5
    load.report_acknowledged(after)
    assert load.status_report(facts(load_time_s=3.0, generation=1)).body["loadtime"] == 3.0


def test_what_arrives_during_a_post_is_in_the_next_report() -> None:
    load = new_load()
    load.apply(batch(1, closes=[closed(1)], totals=Totals(100.0, 100.0)), 0.0, 0.0)
    report = load.status_report(facts())
    load.apply(batch(2, closes=[closed(2)], totals=Totals(200.0, 200.0)), 0.0, 0.0)
    load.report_acknowledged(report)
    assert load.status_report(facts()).body["cur_perf"] == 100.0


def test_new_load_is_never_negative_and_still_adds_up() -> None:
    load = new_load()
    load.apply(batch(1, [opened(1)], totals=Totals(received=100.0)), 0.0, 0.0)
    load.report_acknowledged(load.status_report(facts()))
    gone = Totals(received=100.0, cancelled=100.0)
    load.apply(batch(2, closes=[closed(1, Outcome.CANCELLED)], totals=gone), 0.0, 0.0)
    report = load.status_report(facts())
    assert report.body["new_load"] == 0.0
    load.report_acknowledged(report)
    load.apply(
        batch(3, [opened(2, 150.0)], totals=Totals(received=250.0, cancelled=100.0)), 0.0, 0.0
    )
    assert load.status_report(facts()).body["new_load"] == 50.0


def test_the_load_time_is_told_again_to_who_may_have_forgotten_it() -> None:
    load = Load("run")
    loaded = facts(load_time_s=3.0, generation=1)
    load.report_acknowledged(load.status_report(loaded))
    assert load.status_report(loaded).body["loadtime"] == 0.0
    load.tell_load_time_again()
    assert load.status_report(loaded).body["loadtime"] == 3.0
