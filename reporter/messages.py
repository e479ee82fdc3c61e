"""Words of the events socket: timing events in, acknowledgements and the engine's key out.

Ingress owns the accounts of requests: it alone sees each from its first byte to its one outcome.
The adapter owns those of sessions. A producer keeps every record until it is acknowledged, and
sends cumulative totals with each batch: a lost or repeated one can never make the load drift. Times
are ``time.monotonic()`` seconds, which every process of one machine shares. Workloads are multiples
of 1/1024: sums are exact.

Append fields with defaults, never reorder, never reuse a tag.
"""

from __future__ import annotations

import enum

from supervisor.messages import Message

#: ``Closed.route`` of a session.
SESSION_ROUTE = "/session/create"


class Outcome(enum.StrEnum):
    """How a request ended; the spelling is the engine's (``status`` of delete_requests)."""

    SUCCESS = "Success"
    ERROR = "Error"
    CANCELLED = "Cancelled"
    REJECTED = "Rejected"


class Totals(Message, frozen=True):
    """Cumulative since the producer's epoch began.

    Law 5, at every instant: received = served + errored + cancelled + rejected + pending.
    """

    received: float = 0.0  #: workload
    served: float = 0.0
    errored: float = 0.0
    cancelled: float = 0.0
    rejected: float = 0.0
    requests: int = 0  #: requests received, whatever became of them; one sent again counts once
    inside: float = 0.0  #: of what is pending: workload of requests that their session stands for


class Opened(Message, frozen=True):
    """A request was accepted for work and has not ended yet."""

    key: int  #: unique within the producer's epoch, ascending
    request_idx: int
    workload: float
    at: float  #: monotonic; entered_queue_at


class Closed(Message, frozen=True):
    """A request ended. It may never have been announced as Opened (it was that quick)."""

    key: int
    request_idx: int
    workload: float
    outcome: str  #: an Outcome
    entered_at: float
    started_at: float  #: 0: never dispatched
    ended_at: float
    route: str = ""  #: configured route, for metrics (only those and SESSION_ROUTE)
    status: int = 0  #: HTTP status that the client got; 499: it had gone
    first_byte_at: float = 0.0  #: when the response began; 0: never
    sent_bytes: int = 0


# --------------------------------------------------------------------- producers → reporter


class Events(Message, frozen=True, tag=1):
    """One batch of a producer's accounts, sent every 0.1 s while something changed.

    ``epoch`` ascends with every life of the producer, ``seq`` by one per batch within it. After
    every (re)connect the producer sends all unacknowledged batches again, oldest first, unchanged.
    """

    producer: str
    epoch: int
    seq: int
    opened: list[Opened]
    closed: list[Closed]
    totals: Totals
    #: refusals that never became work, since the epoch began: kind → count (bounded: error kinds)
    refused: dict[str, int] = {}


class KeySuspect(Message, frozen=True, tag=2):
    """Signatures stopped verifying (or no key is known): fetch the engine's key again, soon."""


class ModelReport(Message, frozen=True, tag=3):
    """The adapter's view of the model server, sent when it changes and after every (re)connect."""

    ready: bool
    error: str = ""  #: "" when nothing is wrong; cleared when the cause is gone
    load_time_s: float = 0.0  #: from the model server's start to ready; 0 until it got ready
    generation: int = 0
    max_perf: float = 0.0  #: workload per second; 0: unknown


class Gpu(Message, frozen=True):
    """One GPU as it was seen last."""

    index: int
    name: str
    used_bytes: int
    total_bytes: int  #: 0: unknown
    utilization: float  #: 0 to 1; negative: unknown
    usable: bool


class QueueReport(Message, frozen=True, tag=4):
    """The adapter's gauges, every second while they change."""

    waiting: int
    running: int
    waiting_bytes: int
    retried: int  #: since its epoch began
    benchmarked: int = 0  #: benchmark requests since its epoch began
    sessions: int = 0  #: open now
    gpus: list[Gpu] = []  #: none: they are not watched


ToReporter = Events | KeySuspect | ModelReport | QueueReport


# --------------------------------------------------------------------- reporter → producers


class Ack(Message, frozen=True, tag=1):
    """Every batch of this producer's epoch up to ``seq`` is safe with the reporter."""

    seq: int
    epoch: int = 0  #: a predecessor's confirmations may reach its successor


class PublicKey(Message, frozen=True, tag=2):
    """The engine's RSA public key (PEM), after every (re)connect and when it changed."""

    pem: str


FromReporter = Ack | PublicKey
