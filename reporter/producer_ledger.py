"""Pure: the accounts of one producer, and what the reporter has not confirmed of them.

A producer sees what it accounts from its beginning to its one outcome: ingress its requests, the
adapter its sessions. Law 5 holds at every instant:
``received = served + errored + cancelled + rejected + pending``, exactly, since workloads are
multiples of 1/1024.

Every batch is kept until the reporter acknowledges it and is sent again, unchanged, in every new
session. While nothing is acknowledged the changes wait here, bounded by a few times ``MAX_ROWS``
and the open requests: beyond, the oldest ends are dropped and counted. Those of requests that the
reporter was told of as open are not (it would count them as open for ever), and the totals stay
exact.
"""

from __future__ import annotations

from collections import deque

from reporter.messages import Closed, Events, Opened, Outcome, Totals

#: Beginnings and ends of requests that are kept while the reporter does not confirm.
MAX_ROWS = 50_000
#: Numbers of requests that are remembered to see that one comes again.
MAX_REQNUMS = 8192
#: ``request_idx`` of what the engine does not hear of one by one.
UNTOLD_IDX = -1
#: Batches under way without an acknowledgement before new ones wait.
MAX_UNACKED = 64
# an enum's members are looked up slowly
_SUCCESS, _ERROR, _CANCELLED = Outcome.SUCCESS, Outcome.ERROR, Outcome.CANCELLED


class ProducerLedger:
    """Accounts of one process life.

    Args:
        producer: the process's name. epoch: greater than that of the process before it.
    """

    def __init__(self, producer: str, epoch: int) -> None:
        self._producer = producer
        self.epoch = epoch
        self._seq = 0
        self._key = 0
        self._open: dict[int, Opened] = {}
        self._new: dict[int, Opened] = {}
        self._inside: set[int] = set()  # of the open ones
        #: ends of requests that were announced as open, and of those that were not
        self._closed: list[Closed] = []
        self._quick: deque[Closed] = deque()
        self._unacked: deque[Events] = deque()
        self._unacked_rows = 0
        self._refused: dict[str, int] = {}
        self._refused_at_port: dict[str, int] = {}
        self._reqnums: dict[int, None] = {}  # the latest, oldest first
        self._changed = True  # the first batch announces the epoch
        self.received = self.served = self.errored = self.cancelled = self.rejected = 0.0
        self.pending = 0.0
        self.requests = 0
        #: workload of open requests that their session stands for
        self.inside = 0.0
        #: closed rows that were dropped because the reporter was away for too long
        self.dropped = 0

    def open(
        self,
        request_idx: int,
        workload: float,
        now: float,
        reqnum: int | None = None,
        *,
        inside: bool = False,
        counted: bool = True,
    ) -> int:
        """A request was taken. Returns its key, which is never 0.

        ``reqnum``: the engine's number of the routing that sent it; a request that comes again
        with the same one is the same request to the engine, and counted once. ``inside``: it
        belongs to a session, which stands for it: it is work, but no request that the engine sent.
        ``counted`` False: it was counted as a request before.
        """
        self._key += 1
        key = self._key
        opened = Opened(key, UNTOLD_IDX if inside else request_idx, workload, now)
        self._open[key] = self._new[key] = opened
        self.received += workload
        self.pending += workload
        if inside:
            self._inside.add(key)
            self.inside += workload
        elif not counted:
            pass
        elif reqnum is None:
            self.requests += 1
        elif reqnum not in self._reqnums:
            self.requests += 1
            self._reqnums[reqnum] = None
            if len(self._reqnums) > MAX_REQNUMS:
                del self._reqnums[next(iter(self._reqnums))]
        self._changed = True
        return key

    def close(
        self,
        key: int,
        outcome: Outcome,
        now: float,
        *,
        route: str,
        status: int,
        started_at: float = 0.0,
        first_byte_at: float = 0.0,
        sent_bytes: int = 0,
    ) -> None:
        """The request ended. Its key is unknown from now on (closing twice is a KeyError)."""
        opened = self._open.pop(key)
        ends = self._closed if self._new.pop(key, None) is None else self._quick
        workload = opened.workload
        self.pending -= workload
        if key in self._inside:
            self._inside.discard(key)
            self.inside -= workload
        if outcome is _SUCCESS:
            self.served += workload
        elif outcome is _ERROR:
            self.errored += workload
        elif outcome is _CANCELLED:
            self.cancelled += workload
        else:
            self.rejected += workload
        ends.append(
            Closed(
                key,
                opened.request_idx,
                workload,
                outcome,
                opened.at,
                started_at,
                now,
                route,
                status,
                first_byte_at,
                sent_bytes,
            )
        )
        if self._quick and len(self._closed) + len(self._quick) + self._unacked_rows > MAX_ROWS:
            self._quick.popleft()
            self.dropped += 1
        self._changed = True

    def refuse(self, kind: str) -> None:
        """A request was refused before it became work (bad signature, no such route …)."""
        self._refused[kind] = self._refused.get(kind, 0) + 1
        self._changed = True

    def refused_at_port(self, counts: dict[str, int]) -> None:
        """Refusals that the HTTP server counted itself, since it started."""
        if counts != self._refused_at_port:
            self._refused_at_port = dict(counts)
            self._changed = True

    @property
    def totals(self) -> Totals:
        """Cumulative sums of this epoch."""
        return Totals(
            self.received,
            self.served,
            self.errored,
            self.cancelled,
            self.rejected,
            self.requests,
            self.inside,
        )

    def batch(self) -> Events | None:
        """The next batch to send, or None: nothing changed, or too much is under way."""
        if not self._changed or len(self._unacked) >= MAX_UNACKED or self._unacked_rows >= MAX_ROWS:
            return None
        self._changed = False
        self._seq += 1
        events = Events(
            self._producer,
            self.epoch,
            self._seq,
            list(self._new.values()),
            [*self._closed, *self._quick],
            self.totals,
            {
                kind: self._refused.get(kind, 0) + self._refused_at_port.get(kind, 0)
                for kind in self._refused.keys() | self._refused_at_port.keys()
            },
        )
        self._new.clear()
        self._closed.clear()
        self._quick.clear()
        self._unacked.append(events)
        self._unacked_rows += len(events.opened) + len(events.closed)
        return events

    def acked(self, seq: int) -> None:
        """The reporter has everything up to ``seq``."""
        while self._unacked and self._unacked[0].seq <= seq:
            events = self._unacked.popleft()
            self._unacked_rows -= len(events.opened) + len(events.closed)

    @property
    def settled(self) -> bool:
        """The reporter has confirmed everything there is to say."""
        return not (self._unacked or self._changed)

    def unacked(self) -> list[Events]:
        """What to send again in a new session, oldest first."""
        return list(self._unacked)
