"""Words of the hooks socket: ingress and adapter ask, the process that holds the worker.py answers.

It is bound by ``ingress/hooks``; the words live here because the adapter, which may not import
ingress, asks as well. Law: each Prepare and each Sample gets at most one Prepared or Refused; who
asks gives up after ``hooks.timeout_s``. What has waited so long, was forgotten, or was asked in a
session that ended is not begun any more, and not answered. Append fields with defaults, never
reorder.
"""

from __future__ import annotations

from typing import ClassVar

from backend_adapter.messages import FilePart
from supervisor.messages import Message

#: Names of the socket of these words, and of the one that whole jobs are sent to over HTTP …
HOOKS_SOCKET = "hooks"
HOSTED_SOCKET = "hosted"
#: … with these headers: the route as it is configured, and the ticket of its payload.
ROUTE_HEADER = "x-lighterman-route"
TICKET_HEADER = "x-lighterman-ticket"
#: Header of an answer, with status 503: the model server behind the worker.py takes no connections,
#: so the job did not reach it.
UNSENT_HEADER = "x-lighterman-unsent"
_UNSENT_LINE = f"{UNSENT_HEADER}: 1\r\n".encode()
AWAY = "the model server behind worker.py takes no connections"


def is_unsent(status: int, headers: bytes) -> bool:
    """Whether the head of a hosted job's response is that word, and no answer."""
    return status == 503 and _UNSENT_LINE in headers


# --------------------------------------------------------------------- ingress, adapter → hooks


class Prepare(Message, frozen=True, tag=1):
    """What is to be sent to the model server for this request, and how much work is it?"""

    bulky: ClassVar[bool] = True

    id: int  #: unique within the sender's session
    route: str  #: as configured
    body: bytes = b""  #: the client's whole body, valid JSON: auth_data, payload, session_id
    file: FilePart | None = None  #: in place of ``body``


class Sample(Message, frozen=True, tag=2):
    """Make a payload for the benchmark of a route."""

    id: int
    route: str


class Measured(Message, frozen=True, tag=3):
    """The benchmark has found this figure (workload per second); it is remembered."""

    max_perf: float


class Forget(Message, frozen=True, tag=4):
    """Nobody waits for the answer to this Prepare any more. Ignored when it was answered."""

    id: int


class SessionSeen(Message, frozen=True, tag=5):
    """A session is open, or was used: for code that looks at ``worker.backend.sessions``."""

    bulky: ClassVar[bool] = True

    session_id: str
    lifetime_s: int | float
    expiration: float  #: wall-clock seconds, as the next one
    created_at: float
    on_close_route: str | None
    on_close_payload: bytes | None  #: JSON
    request_idx: int
    requests: int  #: taken so far
    body: bytes  #: its auth_data, JSON


class SessionGone(Message, frozen=True, tag=6):
    """It was closed."""

    session_id: str


class SessionsAnew(Message, frozen=True, tag=7):
    """None is open but those that are told from now on."""


AboutSessions = SessionSeen | SessionGone | SessionsAnew
ToHooks = Prepare | Sample | Measured | Forget | AboutSessions


# --------------------------------------------------------------------- hooks → ingress, adapter


class Prepared(Message, frozen=True, tag=1):
    """The answer to Prepare or Sample."""

    bulky: ClassVar[bool] = True

    id: int
    workload: float  #: as the hook said it; finite, not below 0
    body: bytes = b""  #: for the model server; empty with ``untouched``
    headers: bytes = b""  #: header lines for the model server: the body's content type
    untouched: bool = False  #: the client's payload goes on as it came
    ticket: str = ""  #: under which the parsed payload is kept until the job is dispatched
    hosted: bool = False  #: a Sample for a function that stands in for the model server
    known: float = 0.0  #: in place of a Sample: this figure is believed, nothing is measured


class Refused(Message, frozen=True, tag=2):
    """No. ``kind``: ``invalid_parameter`` (422), ``hook_failed``, ``internal`` (500) or ``memory``
    (503).
    """

    id: int
    kind: str
    message: str
    extra: bytes = b""  #: JSON object whose keys stand beside ``error`` in the client's answer


FromHooks = Prepared | Refused
