"""The nouns of the accounts: rows for the engine, marks, the state at rest, and its changes.

Responsible for the shapes that ``load.py``, ``outbox.py`` and ``store.py`` hand to each other.
Times in here are wall-clock seconds, because they outlive a reboot, and 0.0 where the thing never
happened. Workloads are multiples of 1/1024, so sums are exact.

This module is a leaf among the pure ones: it knows nothing of sockets, files or the clock.
"""

from __future__ import annotations

import msgspec

from reporter.messages import Outcome, Totals

#: ``success`` in the engine's record; a client that went away is no fault of this worker.
_SUCCESSES = frozenset((Outcome.SUCCESS, Outcome.CANCELLED))


class Row(msgspec.Struct, frozen=True, gc=False):
    """One ended request, as the engine's ``/delete_requests/`` wants to hear of it."""

    id: int  #: ascending in the order of ending; never sent
    request_idx: int
    status: str  #: an Outcome
    entered_at: float
    started_at: float
    completed_at: float

    def body(self) -> dict[str, object]:
        """The JSON object of one entry of ``requests``."""
        return {
            "request_idx": self.request_idx,
            "success": self.status in _SUCCESSES,
            "status": str(self.status),
            "entered_queue_at": self.entered_at,
            "work_started_at": self.started_at,
            "work_completed_at": self.completed_at,
        }


class OpenRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that has not ended."""

    key: int  #: unique within its producer's epoch
    request_idx: int
    workload: float
    entered_at: float


class LedgerRecord(msgspec.Struct, frozen=True):
    """How far one producer's accounts are known."""

    producer: str
    epoch: int
    seq: int  #: every batch up to this one is in ``totals``
    totals: Totals


class Marks(msgspec.Struct, frozen=True):
    """What the last acknowledged report has told the engine, cumulative."""

    served: float = 0.0
    rejected: float = 0.0
    processing: float = 0.0  #: received − cancelled − rejected, where it was highest
    loaded_generation: int = -1  #: the model start whose load time was told; -1: none yet
    disk_gb: float | None = None


class State(msgspec.Struct, frozen=True):
    """Everything that must survive a restart of the reporter."""

    run_id: str = ""
    base: Totals = Totals()  #: sums of epochs that are over; nothing pending
    marks: Marks = Marks()
    ledgers: tuple[LedgerRecord, ...] = ()
    open: dict[str, tuple[OpenRequest, ...]] = {}  #: by producer
    rows: tuple[Row, ...] = ()  #: undelivered, oldest first
    more_rows: int = 0  #: undelivered rows that stayed in the store
    next_row_id: int = 1
    delivered_through_id: int = 0


# -------------------------------------------------------------------------------- changes


class SaveRun(msgspec.Struct, frozen=True):
    """The accounts now belong to this run of the worker."""

    run_id: str


class SaveBase(msgspec.Struct, frozen=True):
    """New sums of the epochs that are over."""

    base: Totals


class SaveMarks(msgspec.Struct, frozen=True):
    """A report was acknowledged."""

    marks: Marks


class SaveLedger(msgspec.Struct, frozen=True):
    """A producer's accounts are known further."""

    ledger: LedgerRecord


class DropLedger(msgspec.Struct, frozen=True):
    """A producer's epoch is over."""

    producer: str


class SaveOpen(msgspec.Struct, frozen=True):
    """Requests began."""

    producer: str
    requests: tuple[OpenRequest, ...]


class DropOpen(msgspec.Struct, frozen=True):
    """Requests ended."""

    producer: str
    keys: tuple[int, ...]


class ClearOpen(msgspec.Struct, frozen=True):
    """No request of this producer is known to be open."""

    producer: str


class SaveRows(msgspec.Struct, frozen=True):
    """Rows to deliver."""

    rows: tuple[Row, ...]


class DropRows(msgspec.Struct, frozen=True):
    """The engine has every row up to this id, or wants none."""

    through_id: int


class Replace(msgspec.Struct, frozen=True):
    """Everything anew, after the file fell behind; stored rows newer than the state's stay."""

    state: State


Change = (
    Replace
    | SaveRun
    | SaveBase
    | SaveMarks
    | SaveLedger
    | DropLedger
    | SaveOpen
    | DropOpen
    | ClearOpen
    | SaveRows
    | DropRows
)
