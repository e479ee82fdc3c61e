"""Law 5 at the door: nothing is lost from the accounts or counted twice, whatever is sent again."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reporter import producer_ledger as ledger_room
from reporter.messages import Closed, Events, Opened, Outcome, Totals
from reporter.producer_ledger import ProducerLedger

workloads = st.integers(0, 2**20).map(lambda units: units / 1024)
outcomes = st.sampled_from(list(Outcome))


def balance(totals: Totals) -> float:
    return totals.received - totals.served - totals.errored - totals.cancelled - totals.rejected


class Books(RuleBasedStateMachine):
    """A ledger, a session that comes and goes, and a reporter that takes each batch once."""

    max_rows = 50_000
    max_unacked = 64

    def __init__(self) -> None:
        super().__init__()
        self._saved = (ledger_room.MAX_ROWS, ledger_room.MAX_UNACKED)
        ledger_room.MAX_ROWS, ledger_room.MAX_UNACKED = self.max_rows, self.max_unacked
        self.now = 1.0
        self.ledger = ProducerLedger("ingress-0", 77)
        self.open: dict[int, float] = {}
        self.inside: dict[int, float] = {}
        self.requests = 0
        self.peak = 0
        self.expected = dict.fromkeys(Outcome, 0.0)
        self.received = 0.0
        self.refused: dict[str, int] = {}
        self.port: dict[str, int] = {}
        self.first_sent: dict[int, bytes] = {}
        self.up = True
        self.under_way: deque[Events] = deque()
        self.acks: deque[int] = deque()
        self.ended: set[int] = set()
        # the reporter
        self.seen = 0
        self.seen_open: dict[int, Opened] = {}
        self.seen_closed: dict[int, Closed] = {}
        self.seen_totals = Totals()
        self.seen_refused: dict[str, int] = {}

    # ------------------------------------------------------------------ requests

    @rule(
        workload=workloads,
        request_idx=st.integers(-1, 100),
        inside=st.booleans(),
        counted=st.booleans(),
    )
    def request_begins(
        self, workload: float, request_idx: int, inside: bool, counted: bool
    ) -> None:
        self.now += 0.5
        key = self.ledger.open(request_idx, workload, self.now, inside=inside, counted=counted)
        if inside:
            self.inside[key] = workload
        elif counted:
            self.requests += 1
        assert key not in self.open
        assert key not in self.ended
        self.open[key] = workload
        self.received += workload
        self.peak = max(self.peak, len(self.open))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=outcomes)
    def request_ends(self, data: st.DataObject, outcome: Outcome) -> None:
        self.now += 0.5
        key = data.draw(st.sampled_from(sorted(self.open)))
        self.ledger.close(key, outcome, self.now, route="/a", status=200)
        self.expected[outcome] += self.open.pop(key)
        self.inside.pop(key, None)
        self.ended.add(key)

    @rule(kind=st.sampled_from(["bad_signature", "no_route"]))
    def request_is_refused(self, kind: str) -> None:
        self.ledger.refuse(kind)
        self.refused[kind] = self.refused.get(kind, 0) + 1

    @rule(count=st.integers(0, 3))
    def port_refused(self, count: int) -> None:
        self.port["bad_request"] = self.port.get("bad_request", 0) + count
        self.ledger.refused_at_port(self.port)

    # ------------------------------------------------------------------ the session

    @precondition(lambda self: self.up)
    @rule()
    def batch_is_due(self) -> None:
        events = self.ledger.batch()
        if events is not None:
            assert events.seq not in self.first_sent
            self.first_sent[events.seq] = msgspec.msgpack.encode(events)
            self.under_way.append(events)

    @rule(count=st.integers(1, 4))
    def reporter_hears(self, count: int) -> None:
        for _ in range(min(count, len(self.under_way))):
            events = self.under_way.popleft()
            assert msgspec.msgpack.encode(events) == self.first_sent[events.seq]
            assert (events.producer, events.epoch) == ("ingress-0", 77)
            assert events.seq <= self.seen + 1, "a batch is missing"
            if events.seq == self.seen + 1:
                self._account(events)
            self.acks.append(self.seen)

    def _account(self, events: Events) -> None:
        self.seen = events.seq
        for opened in events.opened:
            assert opened.key not in self.seen_open
            assert opened.key not in self.seen_closed
            self.seen_open[opened.key] = opened
        for closed in events.closed:
            assert closed.key not in self.seen_closed, "counted twice"
            self.seen_closed[closed.key] = closed
            self.seen_open.pop(closed.key, None)
        assert balance(events.totals) >= 0.0
        self.seen_totals = events.totals
        self.seen_refused = events.refused

    @precondition(lambda self: self.acks)
    @rule()
    def acknowledgement_arrives(self) -> None:
        self.ledger.acked(self.acks.popleft())

    @rule(arrived=st.integers(0, 2))
    def session_breaks(self, arrived: int) -> None:
        self.reporter_hears(arrived)
        self.under_way.clear()
        self.acks.clear()
        self.up = False

    @precondition(lambda self: not self.up)
    @rule()
    def session_begins(self) -> None:
        self.up = True
        again = self.ledger.unacked()
        assert [events.seq for events in again] == sorted(events.seq for events in again)
        self.under_way.extend(again)

    # ------------------------------------------------------------------ laws

    @invariant()
    def the_accounts_balance_to_the_last_unit(self) -> None:
        totals = self.ledger.totals
        assert totals.received == self.received
        assert totals.served == self.expected[Outcome.SUCCESS]
        assert totals.errored == self.expected[Outcome.ERROR]
        assert totals.cancelled == self.expected[Outcome.CANCELLED]
        assert totals.rejected == self.expected[Outcome.REJECTED]
        assert balance(totals) == self.ledger.pending == sum(self.open.values())
        assert totals.requests == self.ledger.requests == self.requests
        assert totals.inside == sum(self.inside.values())

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        unacked = self.ledger.unacked()
        assert len(unacked) <= self.max_unacked
        rows = sum(len(events.opened) + len(events.closed) for events in unacked)
        rows += len(self.ledger._closed) + len(self.ledger._quick) + len(self.ledger._new)
        assert rows <= 4 * self.max_rows + 6 * self.peak

    def teardown(self) -> None:
        """In the end the reporter knows all of it."""
        try:
            self.session_breaks(0)
            self.session_begins()
            for _ in range(100):
                self.batch_is_due()
                self.reporter_hears(4)
                while self.acks:
                    self.acknowledgement_arrives()
            assert self.ledger.unacked() == []
            assert self.ledger.batch() is None
            assert self.seen_totals == self.ledger.totals
            assert set(self.seen_open) == set(self.open)
            refused = self.refused | {k: n for k, n in self.port.items() if n}
            assert {k: n for k, n in self.seen_refused.items() if n} == refused
            missing = self.ended - set(self.seen_closed)
            assert len(missing) == self.ledger.dropped
            assert set(self.seen_closed) <= self.ended
        finally:
            ledger_room.MAX_ROWS, ledger_room.MAX_UNACKED = self._saved


class TightBooks(Books):
    """The same with hardly any room, so that rows are dropped and batches wait."""

    max_rows = 4
    max_unacked = 2


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=50)
TestTightBooks = TightBooks.TestCase
TestTightBooks.settings = settings(max_examples=60, stateful_step_count=50)


# ------------------------------------------------------------------ one by one


def closed_fully(ledger: ProducerLedger, key: int, outcome: Outcome = Outcome.SUCCESS) -> None:
    ledger.close(
        key, outcome, 9.0, route="/a", status=200, started_at=2.0, first_byte_at=3.0, sent_bytes=5
    )


def test_the_first_batch_announces_the_epoch() -> None:
    ledger = ProducerLedger("ingress-1", 5)
    assert ledger.batch() == Events("ingress-1", 5, 1, [], [], Totals())
    assert ledger.batch() is None
    assert [events.seq for events in ledger.unacked()] == [1]
    ledger.acked(0)
    assert len(ledger.unacked()) == 1
    ledger.acked(1)
    assert ledger.unacked() == []


def test_a_request_is_told_when_it_begins_and_when_it_ends() -> None:
    ledger = ProducerLedger("ingress-0", 5)
    key = ledger.open(7, 2.5, 1.0)
    quick = ledger.open(8, 1.0, 1.5)
    closed_fully(ledger, quick)
    first = ledger.batch()
    assert first is not None
    assert first.opened == [Opened(key, 7, 2.5, 1.0)]
    assert first.closed == [Closed(quick, 8, 1.0, "Success", 1.5, 2.0, 9.0, "/a", 200, 3.0, 5)]
    assert first.totals == Totals(3.5, 1.0, 0.0, 0.0, 0.0, 2)
    closed_fully(ledger, key, Outcome.CANCELLED)
    second = ledger.batch()
    assert second is not None
    assert (second.opened, [row.key for row in second.closed]) == ([], [key])
    assert second.totals == Totals(3.5, 1.0, 0.0, 2.5, 0.0, 2)
    with pytest.raises(KeyError):
        closed_fully(ledger, key)


def test_a_request_that_was_announced_is_never_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends that nobody waits for are dropped first; those the reporter waits for, never."""
    monkeypatch.setattr(ledger_room, "MAX_ROWS", 3)
    ledger = ProducerLedger("ingress-0", 5)
    announced = [ledger.open(n, 1.0, 1.0) for n in range(5)]
    assert ledger.batch() is not None
    for key in announced:
        closed_fully(ledger, key)
    for n in range(10):
        closed_fully(ledger, ledger.open(n, 1.0, 2.0))
    assert ledger.dropped == 10
    assert ledger.batch() is None  # too much is under way
    ledger.acked(1)
    last = ledger.batch()
    assert last is not None
    assert [row.key for row in last.closed] == announced
    assert last.totals.served == 15.0


def test_a_batch_waits_while_too_many_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_room, "MAX_UNACKED", 2)
    ledger = ProducerLedger("ingress-0", 5)
    for _ in range(3):
        ledger.refuse("no_route")
        ledger.batch()
    assert [events.refused for events in ledger.unacked()] == [{"no_route": 1}, {"no_route": 2}]
    ledger.acked(1)
    last = ledger.batch()
    assert last is not None
    assert (last.seq, last.refused) == (3, {"no_route": 3})


def test_what_the_port_refused_is_told_once_per_change() -> None:
    ledger, counts = ProducerLedger("ingress-0", 5), {"bad_request": 1}
    ledger.refuse("bad_request")
    ledger.refused_at_port(counts)
    first = ledger.batch()
    assert first is not None
    assert first.refused == {"bad_request": 2}
    ledger.refused_at_port(counts)
    assert ledger.batch() is None
    counts["too_large"] = 3  # the same mapping, changed
    ledger.refused_at_port(counts)
    second = ledger.batch()
    assert second is not None
    assert second.refused == {"bad_request": 2, "too_large": 3}


def test_the_oldest_ends_are_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_room, "MAX_ROWS", 3)
    ledger = ProducerLedger("ingress-0", 5)
    for n in range(5):
        closed_fully(ledger, ledger.open(n, 1.0, 2.0))
    events = ledger.batch()
    assert events is not None
    assert [row.request_idx for row in events.closed] == [2, 3, 4]
    assert ledger.dropped == 2


def test_a_request_that_comes_again_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_room, "MAX_REQNUMS", 3)
    ledger = ProducerLedger("ingress-0", 77)
    for reqnum in (1, 2, 1, None, 3, 4, 2, 4, None):
        ledger.open(5, 1.0, 0.0, reqnum)
    assert ledger.requests == 6  # four numbers, and two that have none
    ledger.open(5, 1.0, 0.0, 1)
    assert ledger.requests == 7, "1 was forgotten: what is remembered has a bound"
