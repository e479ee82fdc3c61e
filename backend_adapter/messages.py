"""Words of the jobs socket: ingress submits, the adapter answers.

Law 1: each submitted job gets exactly one terminal message (Answer, End, Failed or Rejected), and
nothing after it; one that the ingress cancels gets none. Times are ``time.monotonic()`` seconds,
which every process of one machine shares. Append fields with defaults, never reorder, never reuse
a tag.
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from supervisor.messages import Message


class FilePart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A body that is too large for a message: where it lies until the job has ended."""

    path: str
    offset: int
    size: int  #: bytes

    def __len__(self) -> int:
        return self.size


# --------------------------------------------------------------------- ingress → adapter


class Submit(Message, frozen=True, tag=1):
    """One validated job."""

    bulky: ClassVar[bool] = True

    id: int  #: unique within the sender's session, ascending
    path: str  #: path and query on the model server, e.g. ``/v1/completions``
    lane: str  #: FIFO that it waits in
    lane_limit: int  #: jobs of this lane that may run at once; 0: the model server schedules
    workload: float  #: units of work; a multiple of 1/1024, so that sums are exact
    max_queue_time_s: float  #: refuse or drop when it would wait, or waited, longer; inf: never
    expires_at: float  #: monotonic time after which nobody wants the answer; inf: never
    credit: int  #: response bytes that may be sent before more is granted
    redeliver: bool = True  #: may run again when it was sent but no response head was seen
    method: str = "POST"
    headers: bytes = b"content-type: application/json\r\n"  #: header lines for the model server
    body: bytes = b""
    hosted: bool = False  #: it goes to the process that holds the worker.py
    session_id: str = ""  #: it belongs to this session, and is taken only while that is open
    file: FilePart | None = None  #: in place of ``body``


class Cancel(Message, frozen=True, tag=2):
    """Nobody wants this job any more. It is answered by a Cancelled, whatever became of the job."""

    id: int


class Credit(Message, frozen=True, tag=3):
    """``size`` more response bytes of this job may be sent (they left for the client)."""

    id: int
    size: int


class SessionCall(Message, frozen=True, tag=4):
    """One call of /session/create, get, health or end.

    It is answered like a job, by an Answer or a Rejected, and rides like one: it is sent again in
    the next session of the socket until it is answered.
    """

    bulky: ClassVar[bool] = True
    # what it has in common with a Submit
    redeliver: ClassVar[bool] = True  #: creating an open session again changes nothing
    max_queue_time_s: ClassVar[float] = 30.0
    expires_at: ClassVar[float] = math.inf

    id: int  #: shares its numbers with Submit
    call: str  #: ``create``, ``get``, ``health`` or ``end``
    session_id: str  #: for ``create``: the new one's, drawn at random
    auth: bytes  #: digest of auth_data or session_auth, the same for all that mean the same
    # what follows is for ``create``
    lifetime_s: int | float = 60
    workload: float = 0.0
    request_idx: int = -1
    reqnum: int | None = None
    on_close_route: str | None = None  #: path on the model server
    names_itself: bool = False  #: its payload for the end holds a session_id already
    auth_bytes: int = 0  #: of ``body``: its auth_data
    body: bytes = b""  #: JSON, as it is shown again: auth_data, then the payload for the end


ToAdapter = Submit | Cancel | Credit | SessionCall


# --------------------------------------------------------------------- adapter → ingress


class Answer(Message, frozen=True, tag=1):
    """A whole response at once. Terminal."""

    bulky: ClassVar[bool] = True

    id: int
    status: int
    headers: bytes  #: header lines, hop-by-hop and framing ones removed, each ending in CRLF
    started_at: float  #: monotonic time when it was dispatched to the model server
    body: bytes = b""


class Head(Message, frozen=True, tag=2):
    """The response has begun; Chunks follow."""

    id: int
    status: int
    headers: bytes
    started_at: float
    content_length: int = -1  #: -1: unknown, the client gets chunked framing


class Chunk(Message, frozen=True, tag=3):
    """Bytes of a begun response, in order, never beyond the job's credit."""

    bulky: ClassVar[bool] = True

    id: int
    #: as it is read it may be a view of the whole frame that it came in
    body: memoryview = memoryview(b"")


class End(Message, frozen=True, tag=4):
    """The begun response is complete. Terminal."""

    id: int


class Failed(Message, frozen=True, tag=5):
    """The job ran, or would have, and cannot be answered. Terminal.

    ``kind`` is one of the error kinds of ``ingress/errors.py``: ``model_failed`` (502),
    ``model_timeout`` (504), ``expired`` (504).
    """

    id: int
    kind: str
    message: str
    started_at: float = 0.0  #: 0: was never dispatched


class Rejected(Message, frozen=True, tag=6):
    """The job was never dispatched. Terminal.

    ``kind``: ``queue_full``, ``queue_time``, ``too_many_sessions`` (429), ``not_ready``,
    ``model_down``, ``hooks_down``, ``draining`` (503), ``invalid_session`` (410),
    ``unknown_session`` (400) or ``bad_token`` (401).
    """

    id: int
    kind: str
    message: str
    retry_after_s: float = 0.0
    position: int = 0  #: place in its lane when it was refused, 1-based; 0: not queued


class Cancelled(Message, frozen=True, tag=7):
    """A Cancel has arrived. It ends nothing: whoever sent that has let go of the job."""

    id: int
    started_at: float = 0.0  #: 0: it did not run just then


FromAdapter = Answer | Head | Chunk | End | Failed | Rejected | Cancelled
