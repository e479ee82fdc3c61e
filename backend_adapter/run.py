"""Pure: one job on the model server. Carries its response to the ingress under credit.

A response whose length is known and small leaves as one Answer; everything else as Head, Chunks and
End. Law 6: no Chunk goes beyond the job's credit; what was read beyond it (at most one read of the
socket) waits here while the model server's socket is not read. Law 1: exactly one terminal message.

It does not decide anything about the job: the queue does, and is told through ``Owner``.
"""

from __future__ import annotations

from typing import Protocol

from backend_adapter.hook_messages import AWAY, is_unsent
from backend_adapter.jobs import Job
from backend_adapter.messages import Answer, Chunk, End, FromAdapter, Head
from backend_adapter.model_request import Request, Sink
from backend_adapter.response_headers import ResponseHead

#: A response of known length up to this many bytes is gathered into one Answer.
GATHER_BYTES = 65_536
#: Complete responses whose clients have not read them, each of up to one read of a socket, that
#: hold no slot. Further ones keep theirs until they are delivered: else they would be without end.
MAX_LEAVING = 128
_SERVER = "the model server"


class Sender(Protocol):
    """The connections that a request is sent on (``model_client.py``)."""

    def send(self, request: Request) -> None:
        """Send it; its sink hears of it later. ValueError: it can not be sent."""

    def cancel(self, request: Request) -> None:
        """Close its connection; nothing more is heard of it."""

    def pause(self, request: Request) -> None:
        """Stop reading its response."""

    def resume(self, request: Request) -> None:
        """Read on."""


class Owner(Protocol):
    """What a run needs of the process around it."""

    leaving: int  #: runs that are complete, hold no slot, and are not delivered; kept by the runs

    def tell(self, job: Job, message: FromAdapter) -> None:
        """Send to the ingress that the job came from."""

    def began(self, run: Run) -> None:
        """The client is about to see the response's beginning."""

    def ended(self, run: Run, status: int) -> None:
        """The model server's response is complete; the slot is free."""

    def delivered(self, run: Run) -> None:
        """The terminal message has been sent; nothing is held any more."""

    def unsent(self, run: Run, reason: str) -> None:
        """It did not reach the model server, which is away."""

    def lost(self, run: Run, sent: int, reason: str) -> None:
        """The connection broke before the response began; ``sent`` times it was written."""

    def broken(self, run: Run, kind: str, message: str) -> None:
        """The response can not be completed."""


class Run(Sink):
    """The sink of one request. ``credit`` starts with what the Submit granted; ``client`` has the
    connections that it is sent on.
    """

    __slots__ = (
        "_complete",
        "_credit",
        "_gathering",
        "_head",
        "_held",
        "_keeps_slot",
        "_leaving",
        "_owner",
        "_paused",
        "client",
        "job",
        "request",
    )

    def __init__(self, owner: Owner, job: Job, client: Sender) -> None:
        submit = job.submit
        self.client = client
        self.job = job
        self.request = Request(
            submit.method,
            submit.path,
            submit.headers,
            submit.body if submit.file is None else submit.file,
            self,
            redeliver=job.resend,
        )
        self._owner = owner
        self._credit = submit.credit
        self._head: ResponseHead | None = None
        self._gathering = False
        self._held: list[bytes] = []
        self._paused = False
        self._complete = False
        self._leaving = False
        self._keeps_slot = False

    # ------------------------------------------------------------------ the client's calls

    def on_head(self, head: ResponseHead) -> None:
        """Decide whether it is gathered; if not, the ingress may begin its response."""
        if self._is_unsent(head):
            return
        self._head = head
        limit = min(GATHER_BYTES, self._credit)
        self._gathering = not head.streaming and 0 <= head.content_length <= limit
        if not self._gathering:
            self._owner.began(self)
            job = self.job
            self._owner.tell(
                job,
                Head(
                    job.submit.id,
                    head.status,
                    head.headers,
                    job.dispatched_at,
                    head.content_length,
                ),
            )

    def on_body(self, data: bytes) -> None:
        """Send what the credit allows, hold the rest and read no more."""
        if self._gathering or self._held:
            self._held.append(data)
        else:
            self._push(data)

    def on_end(self) -> None:
        """The slot is free now, mostly; the terminal message follows what is still held."""
        head = self._head
        assert head is not None
        self._complete = True
        if self._held and not self._gathering:
            if self._owner.leaving >= MAX_LEAVING:
                self._keeps_slot = True
                return
            self._owner.leaving += 1
            self._leaving = True
        if self._gathering:
            held = self._held
            self._answer(head, held[0] if len(held) == 1 else b"".join(held))
            return
        self._owner.ended(self, head.status)
        if not self._held:
            self._end()

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """As the others in turn; mostly it is one Answer."""
        if self._is_unsent(head):
            return
        if head.streaming or len(body) > min(GATHER_BYTES, self._credit):
            super().on_whole(head, body)
            return
        self._complete = True
        self._answer(head, body)

    def _is_unsent(self, head: ResponseHead) -> bool:
        """Whether it is no answer, but the word of the worker.py's host that it could not ask."""
        if not (self.job.submit.hosted and is_unsent(head.status, head.headers)):
            return False
        self.client.cancel(self.request)
        self._owner.unsent(self, AWAY)
        return True

    def _answer(self, head: ResponseHead, body: bytes) -> None:
        job, owner = self.job, self._owner
        owner.ended(self, head.status)
        owner.tell(job, Answer(job.submit.id, head.status, head.headers, job.dispatched_at, body))
        owner.delivered(self)

    def on_lost(self, sent: int, reason: str) -> None:
        """Nothing of the response was seen."""
        self._owner.lost(self, sent, self._of_whom(reason))

    def on_broken(self, kind: str, message: str) -> None:
        """It can not be completed."""
        self._owner.broken(self, kind, self._of_whom(message))

    # ------------------------------------------------------------------ the ingress's word

    def grant(self, size: int) -> None:
        """More bytes may be under way."""
        self._credit += size
        if self._gathering or self._head is None:
            return
        held, self._held = self._held, []
        for data in held:
            self.on_body(data)
        if self._held:
            return
        if self._complete:
            self._end()
        elif self._paused:
            self._paused = False
            self.client.resume(self.request)

    def release(self) -> None:
        """It has ended. Run and request know each other: apart, their memory is free at once."""
        self._held.clear()
        if self._leaving:
            self._leaving = False
            self._owner.leaving -= 1
        self.request.release()

    # ------------------------------------------------------------------ inside

    def _of_whom(self, text: str) -> str:
        """A hosted job is worker.py's, which may have ended, or have lost the model server."""
        if not self.job.submit.hosted:
            return text
        return text.replace(_SERVER, f"worker.py (or {_SERVER} behind it)", 1)

    def _push(self, data: bytes) -> None:
        credit = self._credit
        if credit >= len(data):
            self._credit = credit - len(data)
            self._owner.tell(self.job, Chunk(self.job.submit.id, memoryview(data)))
            return
        if credit > 0:
            self._credit = 0
            self._owner.tell(self.job, Chunk(self.job.submit.id, memoryview(data)[:credit]))
            data = data[credit:]
        self._held.append(data)
        if not self._paused:
            self._paused = True
            self.client.pause(self.request)

    def _end(self) -> None:
        if self._keeps_slot:
            assert self._head is not None
            self._owner.ended(self, self._head.status)
        self._owner.tell(self.job, End(self.job.submit.id))
        self._owner.delivered(self)
