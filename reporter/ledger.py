"""Pure: one producer's accounts, batch by batch.

Law: batches count in the order of their ``seq``, from 1 on, each once. One that comes too early is
held until those before it come. The totals of a batch are the truth for sums, its events for what
is open and for the rows that the engine shall have.

How long to wait for a missing batch, and what a new epoch means, ``load.py`` knows, not this
module. Open ones are bounded by the connections and sessions that their producers allow, held
ones by ``load.py``.
"""

from __future__ import annotations

from reporter.messages import Closed, Events, Outcome, Totals
from reporter.records import (
    Change,
    ClearOpen,
    DropOpen,
    LedgerRecord,
    OpenRequest,
    Row,
    SaveOpen,
)

# plain texts: SQLite looks for a way to adapt those of any other class, and that row by row
_OUTCOMES = tuple(outcome.value for outcome in Outcome)
_ERROR = Outcome.ERROR.value
_WORKED = frozenset((Outcome.SUCCESS.value, _ERROR))


def pending(totals: Totals) -> float:
    """Workload that has not ended, by law 5 of the accounts."""
    return totals.received - totals.served - totals.errored - totals.cancelled - totals.rejected


class Changed:
    """Collects what one event changes.

    Args:
        next_row_id: id of the next row.
    """

    __slots__ = ("changes", "closed", "next_row_id", "rows")

    def __init__(self, next_row_id: int) -> None:
        self.next_row_id = next_row_id
        self.changes: list[Change] = []
        self.rows: list[Row] = []
        self.closed: list[Closed] = []

    def add_row(
        self, request_idx: int, outcome: str, entered_at: float, started_at: float, at: float
    ) -> None:
        """A request ended; the engine does not know those with a negative ``request_idx``."""
        if request_idx >= 0:
            row = Row(self.next_row_id, request_idx, outcome, entered_at, started_at, at)
            self.rows.append(row)
            self.next_row_id += 1


class Ledger:
    """The accounts of one producer's live epoch.

    Args:
        record: how far they are known.
        requests: what is open.
    """

    __slots__ = (
        "_held",
        "_open",
        "epoch",
        "gap_since",
        "held_events",
        "producer",
        "refused",
        "seq",
        "totals",
    )

    def __init__(self, record: LedgerRecord, requests: tuple[OpenRequest, ...] = ()) -> None:
        self.producer = record.producer
        self.epoch = record.epoch
        self.seq = record.seq  #: every batch up to this one is accounted
        self.totals = record.totals
        self.refused: dict[str, int] = {}  #: kind → count
        self.held_events = 0  #: events in held batches
        self.gap_since = 0.0  #: monotonic time since which a batch is missed
        self._open = {request.key: request for request in requests}
        self._held: dict[int, Events] = {}

    @property
    def record(self) -> LedgerRecord:
        """How far the accounts are known."""
        return LedgerRecord(self.producer, self.epoch, self.seq, self.totals)

    @property
    def open(self) -> tuple[OpenRequest, ...]:
        """Requests that have not ended, oldest first."""
        return tuple(self._open.values())

    @property
    def holds(self) -> bool:
        """Batches wait to be accounted."""
        return bool(self._held)

    @property
    def ready(self) -> bool:
        """The batch whose turn it is, is here."""
        return self.seq + 1 in self._held

    def hold(self, batch: Events, now: float) -> None:
        """Keep a batch until it is accounted; the same one again changes nothing."""
        if not self._held:
            self.gap_since = now
        if batch.seq not in self._held:
            self._held[batch.seq] = batch
            self.held_events += len(batch.opened) + len(batch.closed)

    def skip(self, changed: Changed) -> None:
        """Give up the missing batches: the oldest held one is ``ready`` then.

        Which requests are open is unknown from here; the end of each says all that its row needs.
        """
        self.seq = min(self._held) - 1
        self._open.clear()
        changed.changes.append(ClearOpen(self.producer))

    def account(self, wall_offset_s: float, changed: Changed) -> Totals:
        """Account the batch that is ``ready``, and believe its totals.

        Returns:
            The totals as its events make them, to compare.
        """
        batch = self._held.pop(self.seq + 1)
        self.held_events -= len(batch.opened) + len(batch.closed)
        before = self.totals
        received = before.received
        ended = dict.fromkeys(_OUTCOMES, 0.0)
        began: list[OpenRequest] = []
        for opened in batch.opened:
            if opened.key not in self._open:
                request = OpenRequest(
                    opened.key, opened.request_idx, opened.workload, opened.at + wall_offset_s
                )
                self._open[opened.key] = request
                began.append(request)
                received += opened.workload
        known: list[int] = []
        for closed in batch.closed:
            if self._open.pop(closed.key, None) is None:
                received += closed.workload
            else:
                known.append(closed.key)
            outcome = closed.outcome if closed.outcome in ended else _ERROR
            ended[outcome] += closed.workload
            changed.add_row(
                closed.request_idx,
                outcome,
                closed.entered_at + wall_offset_s,
                closed.started_at + wall_offset_s if closed.started_at else 0.0,
                closed.ended_at + wall_offset_s if outcome in _WORKED else 0.0,
            )
        if began:
            changed.changes.append(SaveOpen(self.producer, tuple(began)))
        if known:
            changed.changes.append(DropOpen(self.producer, tuple(known)))
        changed.closed += batch.closed
        self.seq = batch.seq
        self.totals = batch.totals
        self.refused = batch.refused
        return Totals(
            received,
            before.served + ended[Outcome.SUCCESS],
            before.errored + ended[Outcome.ERROR],
            before.cancelled + ended[Outcome.CANCELLED],
            before.rejected + ended[Outcome.REJECTED],
            batch.totals.requests,
            batch.totals.inside,
        )
