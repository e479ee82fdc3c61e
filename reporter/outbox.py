"""Pure: what is posted to the engine, and when.

Two kinds of post that do not wait for each other, each one at a time (``delivery.py``):

- status: at most one a second, as soon as something changed, else every ``report_every_s``. Its
  body is made by ``load.py`` at the moment of posting, so a retry carries newer truth.
- ended requests: each second while rows wait, and without a pause while more than one post's worth
  wait. Law: a row leaves only when a post with it was accepted; a post that is repeated holds the
  same rows. So the engine's record has each row once when posts get lost, and at least once when
  only their answers do.

Every row is in the store (``store.py``) until it is delivered. Here are at most ``MEMORY_ROWS`` of
them, the oldest; the others are read back, page by page, in the order of their ids.

Feed events, then carry out what ``step`` returns, but commit the rows handed to ``add`` first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice

import msgspec

from reporter.delivery import Delivery
from reporter.records import DropRows, Row
from supervisor.settings import EngineSettings

STATUS_EVERY_S = 1.0
REQUESTS_EVERY_S = 1.0
#: Some 700 kB, less than what servers take unasked.
ROWS_PER_POST = 4_000
#: Some 25 MB.
MEMORY_ROWS = 100_000
PAGE_ROWS = 20_000
PAGE_RETRY_S = 5.0
#: An id greater than any.
ALL_ROWS = 2**63 - 1

#: It takes no requests posts (a fact of the protocol).
STATUS_ONLY_ADDRESS = "https://cloud.vast.ai/api/v0"


class PostStatus(msgspec.Struct, frozen=True):
    """Post a status report made now; answer with ``status_done``."""

    address: str


class PostRequests(msgspec.Struct, frozen=True):
    """Post these rows; answer with ``requests_done``."""

    address: str
    rows: tuple[Row, ...]


class LoadRows(msgspec.Struct, frozen=True):
    """Read stored rows with greater ids, in order; answer with ``page``."""

    after_id: int
    limit: int


Command = PostStatus | PostRequests | LoadRows | DropRows


class Outbox:
    """What waits for the engine.

    Args:
        settings: the engine's addresses and the manners of posting.
        rows: undelivered rows that the store gave at start, oldest first.
        more_rows: how many it kept back.
    """

    __slots__ = (
        "_changed",
        "_delivered_through_id",
        "_done",
        "_expected_rows",
        "_flushing",
        "_in_hand",
        "_last_id",
        "_loading",
        "_page_due_at",
        "_report_every_s",
        "_requests_at",
        "_rows",
        "_status_at",
        "_stored",
        "dropped",
        "requests",
        "status",
        "store_ok",
    )

    def __init__(
        self, settings: EngineSettings, rows: Sequence[Row] = (), more_rows: int = 0
    ) -> None:
        takes_requests = [
            address for address in settings.addresses if address.rstrip("/") != STATUS_ONLY_ADDRESS
        ]
        self.status = Delivery(settings.addresses, settings.tries, settings.retry_s)
        self.requests = Delivery(takes_requests, settings.tries, settings.retry_s)
        #: False while the store fails: rows beyond the memory bound are lost then, and counted.
        self.store_ok = True
        self.dropped = 0  #: rows that never reached the engine
        self._report_every_s = settings.report_every_s
        self._changed = False
        self._flushing = False
        self._status_at = -math.inf  #: when the last status post began
        self._requests_at = -math.inf
        self._in_hand: tuple[Row, ...] = ()  #: the rows of the post under way, or to be repeated
        self._rows: deque[Row] = deque()
        self._stored = 0  #: rows in the store that are newer than all of ours
        self._last_id = 0
        self._delivered_through_id = 0
        self._loading = False
        self._expected_rows = 0
        self._page_due_at = -math.inf
        self._done: list[Command] = []
        if not takes_requests:
            self._done.append(DropRows(ALL_ROWS))
        elif rows:
            self._rows.extend(rows)
            self._last_id = rows[-1].id
            self._stored = more_rows

    # -------------------------------------------------------------------------- events

    def changed(self) -> None:
        """Readiness, load or an error changed: a report is worth sending."""
        self._changed = True

    def add(self, rows: Sequence[Row]) -> None:
        """Requests ended. The rows are being committed to the store as well."""
        if not rows:
            return
        if not self.requests.has_addresses:
            self._done.append(DropRows(rows[-1].id))
            return
        room = 0 if self._stored else max(0, MEMORY_ROWS - len(self._rows))
        if room:
            self._rows.extend(rows[:room])
            self._last_id = self._rows[-1].id
        rest = len(rows) - room
        if rest <= 0:
            return
        if self.store_ok:
            self._stored += rest
        else:
            self.dropped += rest

    def page(self, rows: Sequence[Row] | None, now: float) -> None:
        """What the store gave for ``LoadRows``; None: it failed, ask again later."""
        self._loading = False
        if rows is None:
            self._page_due_at = now + PAGE_RETRY_S
        elif rows:
            self._rows.extend(rows)
            self._last_id = rows[-1].id
            self._stored = max(0, self._stored - len(rows))
        else:
            self.dropped += self._expected_rows
            self._stored -= self._expected_rows

    def status_done(self, accepted: bool, now: float) -> None:
        """The status post came to an end."""
        if accepted:
            self.status.succeeded()
        else:
            self.status.failed_at(now)
            self._changed = True

    def requests_done(self, accepted: bool, now: float) -> None:
        """The requests post came to an end."""
        if not accepted:
            self.requests.failed_at(now)
            return
        self.requests.succeeded()
        self._delivered_through_id = self._in_hand[-1].id
        self._in_hand = ()
        self._done.append(DropRows(self._delivered_through_id))

    def flush(self) -> None:
        """The worker stops: a last status report and all rows, without any pause."""
        self._flushing = True
        self._changed = True
        self.status.hasten()
        self.requests.hasten()

    # ------------------------------------------------------------------------- figures

    @property
    def rows(self) -> tuple[Row, ...]:
        """Undelivered rows in memory, oldest first."""
        return (*self._in_hand, *self._rows)

    @property
    def delivered_through_id(self) -> int:
        """Every row up to this id is delivered."""
        return self._delivered_through_id

    @property
    def waiting(self) -> int:
        """Undelivered rows, here and in the store."""
        return len(self._in_hand) + len(self._rows) + self._stored

    @property
    def idle(self) -> bool:
        """Nothing is under way and nothing waits: after ``flush`` the reporter may stop."""
        in_flight = self.status.in_flight or self.requests.in_flight
        owes_status = self._changed and self.status.has_addresses
        return not (in_flight or owes_status or self.waiting)

    # -------------------------------------------------------------------------- rules

    def wake_at(self) -> float:
        """Monotonic time at which ``step`` has something to do even without an event."""
        if self._done:
            return -math.inf
        return min(self._status_due(), self._requests_due(), self._page_due())

    def step(self, now: float) -> list[Command]:
        """What is to be done now."""
        commands, self._done = self._done, []
        if now >= self._status_due():
            self._changed = False
            self._status_at = now
            commands.append(PostStatus(self.status.begin(now)))
        if now >= self._requests_due():
            self._requests_at = now
            if not self._in_hand:
                self._in_hand = tuple(islice(self._rows, ROWS_PER_POST))
                for _ in self._in_hand:
                    self._rows.popleft()
            commands.append(PostRequests(self.requests.begin(now), self._in_hand))
        if now >= self._page_due():
            self._loading = True
            self._expected_rows = self._stored
            commands.append(LoadRows(self._last_id, PAGE_ROWS))
        return commands

    def _status_due(self) -> float:
        pause_s = STATUS_EVERY_S if self._changed else self._report_every_s
        earliest = -math.inf if self._flushing and self._changed else self._status_at + pause_s
        return max(earliest, self.status.due_at)

    def _requests_due(self) -> float:
        if not (self._in_hand or self._rows):
            return math.inf
        hurry = self._flushing or len(self._rows) >= ROWS_PER_POST
        earliest = -math.inf if hurry else self._requests_at + REQUESTS_EVERY_S
        return max(earliest, self.requests.due_at)

    def _page_due(self) -> float:
        if not self._stored or self._loading or len(self._rows) > PAGE_ROWS:
            return math.inf
        return self._page_due_at
