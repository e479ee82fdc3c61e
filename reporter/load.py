"""Pure: the worker's load, from the accounts of its producers.

Law 5, at every instant and across restarts of anyone:
``received = served + errored + cancelled + rejected + pending``.

- A batch counts once: (producer, epoch, seq) is remembered, a repeated batch is only
  acknowledged again. A batch that came too early is held until those before it came; when they
  do not come within ``GAP_PATIENCE_S`` (our own state was lost), the accounts go on from there.
- A producer's totals are the truth for sums, its events for what is open and what to deliver. Where
  the two disagree, ``drift`` counts it.
- A producer that appears with a greater epoch has died in between, and its clients' connections
  with it: what the old epoch had open ends as Cancelled, and what else comes of that is ignored.
  Sums of epochs that are over live in ``base``.
- Figures of a report are differences against the last ACKNOWLEDGED report: a report that was
  lost is contained in the next one.

A request whose ``request_idx`` is negative counts as load but is not the engine's to hear of.
Bounds: one ledger per producer name (at most 64 ingress processes, and the adapter), and
``HELD_EVENTS`` in each.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from reporter.ledger import Changed, Ledger, pending
from reporter.messages import Closed, Events, Outcome, Totals
from reporter.records import (
    Change,
    ClearOpen,
    DropLedger,
    LedgerRecord,
    Marks,
    Row,
    SaveBase,
    SaveLedger,
    SaveMarks,
    SaveRows,
    SaveRun,
    State,
)

#: Seconds that a batch waits for those before it.
GAP_PATIENCE_S = 5.0
#: Events of one producer that may be held; beyond, nobody waits any longer.
HELD_EVENTS = 50_000


class Applied(msgspec.Struct, frozen=True):
    """What one event changed.

    The caller commits ``changes``, hands ``rows`` to the outbox (they are among the changes too),
    counts ``closed``, and sends ``Ack(ack, epoch)`` to ``producer`` once the commit is done, even
    one that failed (a full disk must not fill the producers); None: no acknowledgement.
    """

    producer: str
    ack: int | None = None
    epoch: int = 0
    changes: tuple[Change, ...] = ()
    rows: tuple[Row, ...] = ()
    closed: tuple[Closed, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What a report says besides the accounts. The token is the engine client's business."""

    worker_id: int
    version: str
    url: str
    error_msg: str
    load_time_s: float  #: of the model start ``generation``; 0.0 until it was ready
    generation: int
    max_perf: float  #: workload per second
    disk_gb: float  #: used on the root file system, in 2^30 bytes


class Report(msgspec.Struct, frozen=True):
    """The body of one status report, and what it tells the engine when it is acknowledged."""

    body: dict[str, object]
    new_load: float
    rejected: float
    served: float
    told_generation: int | None  #: the model start whose load time it tells; None: none
    disk_gb: float


def _sum(parts: Iterable[Totals]) -> Totals:
    received = served = errored = cancelled = rejected = inside = 0.0
    requests = 0
    for part in parts:
        received += part.received
        served += part.served
        errored += part.errored
        cancelled += part.cancelled
        rejected += part.rejected
        requests += part.requests
        inside += part.inside
    return Totals(received, served, errored, cancelled, rejected, requests, inside)


def _processing(totals: Totals) -> float:
    return totals.received - totals.cancelled - totals.rejected


class Load:
    """The accounts of all producers.

    Args:
        run_id: names this run of the whole worker; another one means that every process is new.
    """

    __slots__ = (
        "_base",
        "_ledgers",
        "_marks",
        "_next_row_id",
        "_refused",
        "drift",
        "gaps",
        "run_id",
    )

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.drift = 0  #: batches whose totals and events disagreed
        self.gaps = 0  #: times that batches were given up, because our own state had been lost
        self._base = Totals()
        self._marks = Marks()
        self._ledgers: dict[str, Ledger] = {}
        self._refused: dict[str, int] = {}
        self._next_row_id = 1

    # ------------------------------------------------------------------------- at rest

    def adopt(self, state: State) -> Applied:
        """Continue from what the store held. Once, before any event.

        Another run's requests are over: they end as Cancelled, and ``requests`` counts from 0.
        """
        self._base = state.base
        self._marks = state.marks
        self._next_row_id = state.next_row_id
        for record in state.ledgers:
            self._ledgers[record.producer] = Ledger(record, state.open.get(record.producer, ()))
        if state.run_id == self.run_id:
            return Applied("")
        changed = Changed(self._next_row_id)
        for producer in list(self._ledgers):
            self._retire(producer, changed)
        self._base = msgspec.structs.replace(self._base, requests=0)
        self._marks = msgspec.structs.replace(self._marks, loaded_generation=-1)
        changed.changes += [SaveBase(self._base), SaveMarks(self._marks), SaveRun(self.run_id)]
        return self._applied(None, changed, None)

    def state(self, rows: tuple[Row, ...], delivered_through_id: int) -> State:
        """All of it, to write a store anew.

        Args:
            rows: the undelivered rows that are in memory, oldest first.
            delivered_through_id: rows up to this one are delivered.
        """
        return State(
            run_id=self.run_id,
            base=self._base,
            marks=self._marks,
            ledgers=tuple(ledger.record for ledger in self._ledgers.values()),
            open={ledger.producer: ledger.open for ledger in self._ledgers.values()},
            rows=rows,
            next_row_id=self._next_row_id,
            delivered_through_id=delivered_through_id,
        )

    # -------------------------------------------------------------------------- events

    def apply(self, events: Events, now: float, wall_offset_s: float) -> Applied:
        """Take one batch.

        Args:
            now: monotonic seconds.
            wall_offset_s: what makes a wall-clock time of a monotonic one, when added.
        """
        changed = Changed(self._next_row_id)
        ledger = self._ledgers.get(events.producer)
        if ledger is None or ledger.epoch != events.epoch:
            if ledger is not None:
                if events.epoch < ledger.epoch:
                    return Applied(events.producer)  # of a process that has a successor
                self._retire(events.producer, changed)
                changed.changes.append(SaveBase(self._base))
            ledger = Ledger(LedgerRecord(events.producer, events.epoch, 0, Totals()))
            self._ledgers[events.producer] = ledger
            # known from now on, also to the reporter after this one
            changed.changes.append(SaveLedger(ledger.record))
        if events.seq <= ledger.seq:
            # Something to commit, so that no acknowledgement overtakes the commits before it.
            changed.changes.append(SaveLedger(ledger.record))
            return self._applied(ledger, changed, ledger.seq)
        ledger.hold(events, now)
        return self._settle(ledger, now, wall_offset_s, changed)

    def tick(self, now: float, wall_offset_s: float) -> list[Applied]:
        """Give up missing batches that are overdue. Call about once a second."""
        return [
            self._settle(ledger, now, wall_offset_s, Changed(self._next_row_id))
            for ledger in self._ledgers.values()
            if ledger.holds and now - ledger.gap_since >= GAP_PATIENCE_S
        ]

    def _settle(self, ledger: Ledger, now: float, offset_s: float, changed: Changed) -> Applied:
        """Account what can be accounted, and acknowledge it."""
        ack = None
        if not ledger.ready and (
            now - ledger.gap_since >= GAP_PATIENCE_S or ledger.held_events > HELD_EVENTS
        ):
            self._jump(ledger, offset_s, changed)
            ack = ledger.seq
        while ledger.ready:
            self.drift += ledger.account(offset_s, changed) != ledger.totals
            ack = ledger.seq
        if ack is not None:
            ledger.gap_since = now
            changed.changes.append(SaveLedger(ledger.record))
        return self._applied(ledger, changed, ack)

    def _jump(self, ledger: Ledger, offset_s: float, changed: Changed) -> None:
        """Go on from the oldest held batch: those before it were acknowledged and then lost.

        What they added was reported while it was known, so the marks move along with it.
        """
        self.gaps += 1
        ledger.skip(changed)
        explained = ledger.account(offset_s, changed)
        actual = ledger.totals
        marks = self._marks
        self._marks = msgspec.structs.replace(
            marks,
            served=marks.served + actual.served - explained.served,
            rejected=marks.rejected + actual.rejected - explained.rejected,
            processing=marks.processing + _processing(actual) - _processing(explained),
        )
        changed.changes.append(SaveMarks(self._marks))

    def _retire(self, producer: str, changed: Changed) -> None:
        """The producer's process is gone: what it had open ends as Cancelled."""
        ledger = self._ledgers.pop(producer)
        for request in ledger.open:
            changed.add_row(
                request.request_idx, Outcome.CANCELLED.value, request.entered_at, 0.0, 0.0
            )
        over = msgspec.structs.replace(
            ledger.totals,
            cancelled=ledger.totals.cancelled + pending(ledger.totals),
            inside=0.0,
        )
        self._base = _sum((self._base, over))
        for kind, count in ledger.refused.items():
            self._refused[kind] = self._refused.get(kind, 0) + count
        changed.changes += [DropLedger(producer), ClearOpen(producer)]

    def _applied(self, ledger: Ledger | None, changed: Changed, ack: int | None) -> Applied:
        self._next_row_id = changed.next_row_id
        rows = tuple(changed.rows)
        if rows:
            changed.changes.append(SaveRows(rows))
        producer, epoch = ("", 0) if ledger is None else (ledger.producer, ledger.epoch)
        return Applied(producer, ack, epoch, tuple(changed.changes), rows, tuple(changed.closed))

    # ------------------------------------------------------------------------- figures

    @property
    def totals(self) -> Totals:
        """Cumulative, over all producers and epochs that the store remembers."""
        return _sum((self._base, *(ledger.totals for ledger in self._ledgers.values())))

    @property
    def refused(self) -> dict[str, int]:
        """Refusals that never became work, by kind, since this reporter started."""
        counts = dict(self._refused)
        for ledger in self._ledgers.values():
            for kind, count in ledger.refused.items():
                counts[kind] = counts.get(kind, 0) + count
        return counts

    @property
    def working(self) -> list[int]:
        """``request_idx`` of every open request that the engine knows."""
        return [
            request.request_idx
            for ledger in self._ledgers.values()
            for request in ledger.open
            if request.request_idx >= 0
        ]

    # ------------------------------------------------------------------------- reports

    def status_report(self, facts: Facts) -> Report:
        """The body of ``/worker_status/`` but for ``mtoken``, which the engine client adds.

        Names and meaning as existing workers send them. ``new_load`` is never negative: a
        cancellation after its request was reported is taken off what comes next. A session counts
        in ``cur_load`` with its cost, for all that runs inside it.
        """
        totals = self.totals
        marks = self._marks
        working = self.working
        new_load = max(0.0, _processing(totals) - marks.processing)
        rejected = totals.rejected - marks.rejected
        served = totals.served - marks.served
        tells = facts.load_time_s > 0.0 and facts.generation != marks.loaded_generation
        disk_before = facts.disk_gb if marks.disk_gb is None else marks.disk_gb
        body: dict[str, object] = {
            "id": facts.worker_id,
            "version": facts.version,
            "loadtime": facts.load_time_s if tells else 0.0,
            "new_load": new_load,
            "cur_load": max(0.0, pending(totals) - totals.inside),
            "rej_load": rejected,
            "max_perf": facts.max_perf,
            "cur_perf": served,
            "cur_capacity": 0,
            "max_capacity": 0,
            "error_msg": facts.error_msg,
            "num_requests_working": len(working),
            "num_requests_recieved": totals.requests,
            "additional_disk_usage": facts.disk_gb - disk_before,
            "disk_usage": facts.disk_gb,
            "working_request_idxs": working,
            "url": facts.url,
        }
        told = facts.generation if tells else None
        return Report(body, new_load, rejected, served, told, facts.disk_gb)

    def tell_load_time_again(self) -> None:
        """The engine may have forgotten us: it was away, or it is another one."""
        self._marks = msgspec.structs.replace(self._marks, loaded_generation=-1)

    def report_acknowledged(self, report: Report) -> SaveMarks:
        """The engine has this report. Returns the change to commit."""
        marks = self._marks
        told = report.told_generation
        self._marks = Marks(
            served=marks.served + report.served,
            rejected=marks.rejected + report.rejected,
            processing=marks.processing + report.new_load,
            loaded_generation=marks.loaded_generation if told is None else told,
            disk_gb=report.disk_gb,
        )
        return SaveMarks(self._marks)
