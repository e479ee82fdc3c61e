"""Accounts under fire: producers, the reporter and posts to the engine die at any moment.

Real parts: ``Load``, ``Outbox``, ``Store`` (SQLite on disk). Played: ingress processes, the wire
between them and the reporter, the engine, the clock. The machine keeps its own books of which
batches must have counted, and compares at every step:

- law 5, and every sum, exactly;
- no request reaches the engine's record twice, and at the end each one has, once;
- what acknowledged reports told adds up to the truth, exactly.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from reporter.ledger import pending
from reporter.load import Applied, Facts, Load
from reporter.messages import Closed, Events, Opened, Outcome, Totals
from reporter.outbox import LoadRows, Outbox, PostRequests, PostStatus
from reporter.records import Change, DropRows
from reporter.store import Store
from supervisor.settings import EngineSettings

PRODUCERS = ("ingress-0", "ingress-1")
FACTS = Facts(7, "0", "http://1.2.3.4:5", "", 3.0, 1, 100.0, 10.0)
ENGINE = EngineSettings(addresses=["http://a", "http://b"], tries=2, retry_s=1.0)
SUM_OF = dict(zip(Outcome, ("served", "errored", "cancelled", "rejected")))
SUMS = ("received", "served", "errored", "cancelled", "rejected", "requests")

workloads = st.integers(0, 4096).map(lambda units: units / 1024)
outcomes = st.sampled_from(list(Outcome))
names = st.sampled_from(PRODUCERS)
fates = st.sampled_from(["arrive", "repeat", "lose"])


@dataclass(eq=False)
class Producer:
    """One life of an ingress process."""

    name: str
    epoch: int
    batches: list[Events] = field(default_factory=list)  #: all that were ever made
    acked: int = 0
    key: int = 0
    open: dict[int, Opened] = field(default_factory=dict)
    new: dict[int, Opened] = field(default_factory=dict)
    closed: list[Closed] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    #: The reporter's side of it: batches that arrived in its present life, and all that count.
    arrived: set[int] = field(default_factory=set)
    counted: int = 0

    def flush(self) -> None:
        """Make a batch of what changed."""
        totals = Totals(*(self.sums[name] for name in SUMS))  # type: ignore[arg-type]
        seq = len(self.batches) + 1
        self.batches.append(
            Events(self.name, self.epoch, seq, list(self.new.values()), self.closed, totals)
        )
        self.new, self.closed = {}, []

    def receive(self, seq: int) -> None:
        """The reporter got this batch."""
        self.arrived.add(seq)
        while self.counted + 1 in self.arrived:
            self.counted += 1

    @property
    def known(self) -> Totals:
        """The totals of what counts."""
        return self.batches[self.counted - 1].totals if self.counted else Totals()


class Accounts(RuleBasedStateMachine):
    """Everything that can happen to the accounts."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.now = 1000.0
        self.request_idx = 0
        self.epochs = 0
        self.live = {name: self.new_life(name) for name in PRODUCERS}
        #: The life of each name that the reporter has heard of last, and those before.
        self.heard: dict[str, Producer] = {}
        self.over: list[Producer] = []
        self.wire: list[tuple[Producer, int]] = []
        self.record: Counter[int] = Counter()  #: the engine's: request_idx → times
        self.told = {"new_load": 0.0, "cur_perf": 0.0, "rej_load": 0.0}
        self.peak = 0.0  #: highest received − cancelled − rejected at an acknowledged report
        self.load_times = 0
        self.start_reporter()

    def new_life(self, name: str) -> Producer:
        self.epochs += 1
        return Producer(name, self.epochs)

    def start_reporter(self) -> None:
        self.store = Store(self.directory)
        state = self.store.load()
        self.load = Load("run")
        adopted = self.load.adopt(state)
        self.outbox = Outbox(ENGINE, state.rows, state.more_rows)
        self.commit(adopted.changes)

    def commit(self, changes: Sequence[Change]) -> None:
        assert self.store.commit(changes).result(30)

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self.settle()
        finally:
            self.store.close()
            shutil.rmtree(self.directory)

    # ------------------------------------------------------------------------- ingress

    @rule(
        name=names,
        opens=st.lists(workloads, max_size=4),
        ends=st.lists(st.tuples(outcomes, st.integers(0, 100)), max_size=4),
    )
    def work(self, name: str, opens: list[float], ends: list[tuple[Outcome, int]]) -> None:
        producer = self.live[name]
        for workload in opens:
            producer.key += 1
            self.request_idx += 1
            request = Opened(producer.key, self.request_idx, workload, self.now)
            producer.open[producer.key] = producer.new[producer.key] = request
            producer.sums["received"] += workload
            producer.sums["requests"] += 1
        for outcome, pick in ends:
            if producer.open:
                self.end(producer, outcome, pick)

    def end(self, producer: Producer, outcome: Outcome, pick: int) -> None:
        request = producer.open.pop(sorted(producer.open)[pick % len(producer.open)])
        producer.new.pop(request.key, None)
        producer.closed.append(
            Closed(
                request.key,
                request.request_idx,
                request.workload,
                outcome,
                request.at,
                request.at,
                self.now,
            )
        )
        producer.sums[SUM_OF[outcome]] += request.workload

    @rule(name=names)
    def send(self, name: str) -> None:
        producer = self.live[name]
        producer.flush()
        self.wire.append((producer, len(producer.batches)))

    @rule(name=names)
    def send_again(self, name: str) -> None:
        producer = self.live[name]
        self.wire += [(producer, seq + 1) for seq in range(producer.acked, len(producer.batches))]

    @rule(name=names)
    def kill_ingress(self, name: str) -> None:
        """Its last words may arrive after the first ones of its successor, and are too late."""
        self.send(name)
        self.live[name] = self.new_life(name)
        self.send(name)

    # ------------------------------------------------------------------------ the wire

    @precondition(lambda self: self.wire)
    @rule(fates=st.lists(st.tuples(st.integers(0, 100), fates), min_size=1, max_size=4))
    def deliver(self, fates: list[tuple[int, str]]) -> None:
        """Messages under way, in any order, arrive, arrive twice, or are lost."""
        for pick, fate in fates:
            if self.wire:
                index = pick % len(self.wire)
                if fate != "lose":
                    self.arrive(*self.wire[index])
                if fate != "repeat":
                    del self.wire[index]

    @precondition(lambda self: self.wire)
    @rule()
    def deliver_in_order(self) -> None:
        for producer, seq in self.wire:
            self.arrive(producer, seq)
        self.wire.clear()

    def arrive(self, producer: Producer, seq: int) -> Applied:
        applied = self.load.apply(producer.batches[seq - 1], 0.0, 0.0)
        before = self.heard.get(producer.name)
        if before is None or before.epoch <= producer.epoch:
            if before is not None and before is not producer:
                self.over.append(before)
            self.heard[producer.name] = producer
            producer.receive(seq)
        self.outbox.add(applied.rows)
        self.outbox.changed()
        self.commit(applied.changes)
        counts = self.heard[producer.name] is producer and seq <= producer.counted
        assert applied.ack == (producer.counted if counts else None)
        if applied.ack is not None:
            producer.acked = applied.ack
        return applied

    # --------------------------------------------------------------------- the reporter

    @rule()
    def kill_reporter(self) -> None:
        """Everything that is committed stays; what is under way, and its memory, is gone.

        What the engine has acknowledged is written first: dying in between sends rows twice.
        """
        self.commit([each for each in self.outbox.step(self.now) if isinstance(each, DropRows)])
        self.store.close()
        self.wire.clear()
        for producer in self.heard.values():
            producer.arrived = set(range(1, producer.counted + 1))
        self.start_reporter()

    @rule(name=names)
    def kill_reporter_before_its_commit(self, name: str) -> None:
        producer = self.heard.get(name)
        if producer is self.live[name] and producer.acked < len(producer.batches):
            self.load.apply(producer.batches[producer.acked], 0.0, 0.0)
            self.kill_reporter()

    @rule()
    def write_the_store_anew(self) -> None:
        state = self.load.state(self.outbox.rows, self.outbox.delivered_through_id)
        assert self.store.rewrite(state).result(30)

    # ------------------------------------------------------------------------ the engine

    @rule(wait_s=st.sampled_from([0.0, 0.5, 1.0, 30.0]), fates=st.lists(st.booleans(), max_size=3))
    def post(self, wait_s: float, fates: list[bool]) -> None:
        """Posts begin; each arrives or is lost before it arrives."""
        self.now += wait_s
        for command in self.outbox.step(self.now):
            accepted = fates.pop() if fates else True
            if isinstance(command, DropRows):
                self.commit([command])
            elif isinstance(command, LoadRows):
                self.outbox.page(
                    self.store.page(command.after_id, command.limit).result(30), self.now
                )
            elif isinstance(command, PostRequests):
                if accepted:
                    self.record.update(row.request_idx for row in command.rows)
                self.outbox.requests_done(accepted, self.now)
            else:
                assert isinstance(command, PostStatus)
                report = self.load.status_report(FACTS)
                if accepted:
                    for name in self.told:
                        figure = report.body[name]
                        assert isinstance(figure, float) and figure >= 0.0
                        self.told[name] += figure
                    self.load_times += report.body["loadtime"] != 0.0
                    totals = self.truth()
                    processing = totals.received - totals.cancelled - totals.rejected
                    self.peak = max(self.peak, processing)
                    self.commit([self.load.report_acknowledged(report)])
                self.outbox.status_done(accepted, self.now)

    # ------------------------------------------------------------------------- the laws

    def truth(self) -> Totals:
        """What the machine's own books say."""
        sums = dict.fromkeys(SUMS, 0.0)
        for producer in (*self.over, *self.heard.values()):
            known = producer.known
            for name in SUMS:
                sums[name] += getattr(known, name)
            if producer in self.over:
                sums["cancelled"] += pending(known)
        return Totals(*(sums[name] for name in SUMS))  # type: ignore[arg-type]

    def requests(self) -> tuple[set[int], set[int]]:
        """(ended, open): every request that counts."""
        ended: set[int] = set()
        alive: set[int] = set()
        for producer in (*self.over, *self.heard.values()):
            opened: set[int] = set()
            closed: set[int] = set()
            for batch in producer.batches[: producer.counted]:
                opened.update(each.request_idx for each in batch.opened)
                closed.update(each.request_idx for each in batch.closed)
            ended |= closed
            if producer in self.over:
                ended |= opened
            else:
                alive |= opened - closed
        return ended, alive

    @invariant()
    def the_sums_are_the_truth(self) -> None:
        if not hasattr(self, "store"):
            return
        totals = self.load.totals
        assert totals == self.truth()
        assert self.load.drift == self.load.gaps == 0
        _, alive = self.requests()
        assert set(self.load.working) == alive
        assert len(self.load.working) == len(alive)

    @invariant()
    def no_request_is_reported_twice_or_too_early(self) -> None:
        if not hasattr(self, "store"):
            return
        ended, _ = self.requests()
        waiting = {row.request_idx for row in self.outbox.rows}
        assert len(waiting) == self.outbox.waiting
        assert set(self.record.values()) <= {1}
        assert set(self.record) | waiting == ended
        assert not set(self.record) & waiting

    @invariant()
    def reports_add_up(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.told["new_load"] == self.peak
        assert self.load_times <= 1

    def settle(self) -> None:
        """All that is under way ends, and nothing is lost any more."""
        for name, producer in self.live.items():
            while producer.open:
                self.end(producer, Outcome.SUCCESS, 0)
            self.send(name)
            self.wire = []
            self.send_again(name)
            self.deliver_in_order()
        for _ in range(2):
            self.outbox.flush()
            for _ in range(5):
                self.post(30.0, [])
            assert self.outbox.idle
            self.kill_reporter()
        self.the_sums_are_the_truth()
        self.no_request_is_reported_twice_or_too_early()
        self.reports_add_up()
        ended, alive = self.requests()
        assert not alive
        assert self.record == Counter(ended)
        totals = self.truth()
        assert pending(totals) == 0.0
        assert self.told["cur_perf"] == totals.served
        assert self.told["rej_load"] == totals.rejected
        assert self.told["new_load"] >= totals.received - totals.cancelled - totals.rejected
        assert self.load_times == 1


Accounts.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAccounts = Accounts.TestCase
