"""A job of the queue, where it stands, and the commands that are given about it.

This module is a leaf of the queue's rules: data only, no decision.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import msgspec

from backend_adapter.messages import Submit

if TYPE_CHECKING:
    from backend_adapter.lanes import Lane

#: (name of the ingress on the jobs socket, its number for the job)
Key = tuple[str, int]


class State(enum.Enum):
    """Where a job stands. One that ended is simply no longer known."""

    WAITING = "waiting"
    RUNNING = "running"  #: sent, or being sent, to the model server
    BEGUN = "begun"  #: its response has begun: it can no longer be sent again


_WAITING = State.WAITING  # an enum's members are looked up slowly


class Job:
    """One job. ``submit`` is its message; the queue reads its terms and ignores its payload."""

    __slots__ = (
        "armed",
        "attempts",
        "deadline",
        "dispatched_at",
        "key",
        "lane",
        "order",
        "queued_at",
        "resend",
        "size_bytes",
        "state",
        "submit",
        "turned_back",
        "waited_s",
    )

    lane: Lane  #: set when the queue takes it

    def __init__(self, key: Key, submit: Submit) -> None:
        self.key = key
        self.submit = submit
        self.size_bytes = len(submit.body)
        self.order = 0  #: arrival number over all lanes
        self.attempts = 0  #: times that it was sent in vain
        self.turned_back = 0  #: times that the model server behind a hosted job was away
        #: it may go on a kept connection, and be sent once more behind the queue's back where what
        #: it meets there may belong to another's answer; said at each dispatch
        self.resend = False
        self.state = _WAITING
        self.queued_at = 0.0  #: since when it waits, this time
        self.waited_s = 0.0  #: how long it had waited before its last dispatch
        self.dispatched_at = 0.0  #: 0: never
        self.deadline = math.inf  #: when it has to leave its state
        self.armed = math.inf  #: deadline under which the heap of deadlines holds it


class Dispatch(msgspec.Struct, frozen=True):
    """Send this job to the model server."""

    job: Job


class Abort(msgspec.Struct, frozen=True):
    """Close this job's connection to the model server at once; nothing is heard of it again."""

    job: Job


class Reject(msgspec.Struct, frozen=True):
    """Tell the sender that the job was refused before it ran. Terminal.

    ``kind``: ``queue_full``, ``queue_time``, ``not_ready``, ``model_down``, ``hooks_down`` or
    ``draining``.
    ``retry_after_s`` 0: nothing is known about when. ``position`` 0: it had been queued already,
    or was refused for another reason than the queue.
    """

    job: Job
    kind: str
    message: str
    retry_after_s: float = 0.0
    position: int = 0


class Fail(msgspec.Struct, frozen=True):
    """Tell the sender that the job cannot be answered. Terminal.

    ``kind``: ``expired``, ``model_failed``, or what the client of the model server named.
    """

    job: Job
    kind: str
    message: str


Command = Dispatch | Abort | Reject | Fail
