"""Pure: what becomes of the jobs that were taken, from their way to the adapter to their one end.

``admission.py`` knows which jobs are unanswered and which may ride on another session; here the
adapter's words, the ends of sessions, departures of clients and deadlines are acted upon: a client
gets its bytes, the adapter its credit and cancellations, and the account of every job that was
settled is closed with it. Law 7 seen from this side: bytes go to a client only while its job is
promised, in the order in which they came; an error that comes behind them is told inside an event
stream, and the connection is cut either way.

An exchange (``exchange.py``, or whatever answers like one) is where a client reads. This module
knows no sockets and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from backend_adapter.messages import (
    Answer,
    Cancel,
    Cancelled,
    Chunk,
    Credit,
    End,
    Failed,
    Head,
    Rejected,
    SessionCall,
    Submit,
)
from ingress.admission import Admission, Job, Lost
from ingress.budget import MOST_CREDITS, TRUSTED_AFTER
from ingress.errors import KINDS, ErrorKind, Problem, sse_error
from reporter.messages import Outcome
from reporter.producer_ledger import ProducerLedger
from supervisor.messages import Message

#: Jobs of one process whose client left, and of which the adapter has not said when they began.
MAX_DEPARTED = 20_000
#: Closes an event of a stream that was cut in its middle; between two events it means nothing.
_EVENT_END = b"\n\n"
# an enum's members are looked up slowly
_SUCCESS, _ERROR = Outcome.SUCCESS, Outcome.ERROR


def _nobody(message: Message) -> bool:
    return False


class Answers:
    """Acts on everything that happens to a job.

    Args:
        credit: response bytes that a job may have under way at first. Those that left for its
            client are credited again in portions of at least a quarter.
    """

    def __init__(self, admission: Admission, ledger: ProducerLedger, credit: int) -> None:
        self._admission = admission
        self._ledger = ledger
        self._grant_at = credit // 4
        self._more, self._trusted_after = (MOST_CREDITS - 1) * credit, TRUSTED_AFTER * credit
        #: hands a message to the adapter; False: no session stands, and nothing is kept
        self.send: Callable[[Message], bool] = _nobody
        #: work whose client left before it was known when it began: id → key, route, when
        self._departed: dict[int, tuple[int, str, float]] = {}
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Answer: self._on_answer,
            Head: self._on_head,
            Chunk: self._on_chunk,
            End: self._on_end,
            Failed: self._on_failed,
            Rejected: self._on_rejected,
            Cancelled: self._on_cancelled,
        }

    # ------------------------------------------------------------------ from the clients

    def submit(self, job: Job) -> None:
        """Take a job: the adapter gets it now, or when a session stands."""
        if self._admission.take(job):
            self.send(job.submit)

    def leave(self, job: Job, now: float) -> None:
        """The client left before its answer ended. Void where that crossed the end."""
        if self._admission.settle(job.submit.id) is None:
            return
        heard = self._cancel(job)
        if not job.key:
            self._ledger.refuse(ErrorKind.CLIENT_GONE)
            return
        job.status = ErrorKind.CLIENT_GONE.status
        if heard and not job.started_at and len(self._departed) < MAX_DEPARTED:
            self._departed[job.submit.id] = (job.key, job.route, now)
        else:
            self._close(job, Outcome.CANCELLED, now)

    def grant(self, job: Job) -> None:
        """What left for the client may be sent again by the model server."""
        if job.owed:
            self.send(Credit(job.submit.id, job.owed))
            job.owed = 0

    # ------------------------------------------------------------------ from the adapter

    def link_up(self) -> None:
        """A session began."""
        for job in self._admission.link_up():
            self.send(job.submit)

    def link_down(self, now: float) -> None:
        """It ended."""
        self._lose(self._admission.link_down(now), now)
        self.close_departed()

    def adapter_failed(self, now: float) -> None:
        """There will be no further session."""
        self._lose(self._admission.give_up(), now)

    def hear(self, messages: Sequence[Any], now: float) -> None:
        """The adapter's words, in order."""
        handlers = self._handlers
        for message in messages:
            handlers[type(message)](message, now)

    # ------------------------------------------------------------------ from the clock

    def expire(self, now: float) -> None:
        """Tell those who waited too long for an adapter."""
        self._lose(self._admission.expire(now), now)

    def give_up(self, now: float) -> None:
        """The process ends: nobody waits any more."""
        for job in list(self._admission.jobs.values()):
            self._admission.settle(job.submit.id)
            self._cancel(job)
            text = "the worker stopped before the answer was complete; send the request elsewhere"
            self._fail(job, Problem(ErrorKind.DRAINING, text, 1.0), now)

    def close_departed(self) -> None:
        """The adapter will not say any more when they began."""
        for number in list(self._departed):
            self._on_cancelled(Cancelled(number), 0.0)

    # ------------------------------------------------------------------ inside

    def _cancel(self, job: Job) -> bool:
        """Tell the adapter. True: it will say when the job began."""
        submit = job.submit
        if isinstance(submit, Submit):
            return self.send(Cancel(submit.id))
        if submit.call == "create":  # nobody will ever name it
            number = self._admission.next_id()
            self.send(SessionCall(number, "end", submit.session_id, submit.auth))
        return False

    def _lose(self, lost: list[Lost], now: float) -> None:
        for item in lost:
            self._fail(item.job, Problem(KINDS[item.kind], item.message, 1.0), now)

    def _on_answer(self, message: Answer, now: float) -> None:
        job = self._admission.settle(message.id)
        if job is None:
            return
        status, body, exchange = message.status, message.body, job.exchange
        exchange.context = None
        exchange.respond(status, message.headers, body)
        if job.key:
            self._ledger.close(
                job.key,
                _outcome(status),
                now,
                route=job.route,
                status=status,
                started_at=message.started_at,
                first_byte_at=now,
                sent_bytes=len(body),
            )

    def _on_head(self, message: Head, now: float) -> None:
        job = self._admission.get(message.id)
        if job is None:
            return
        job.begun = True
        job.status = message.status
        job.started_at = message.started_at
        job.first_byte_at = now
        job.length = message.content_length
        # in a body of known length an error event could pass for its end
        job.stream = message.content_length < 0 and b"text/event-stream" in message.headers
        job.exchange.begin(message.status, message.headers, message.content_length)

    def _on_chunk(self, message: Chunk, now: float) -> None:
        job = self._admission.get(message.id)
        if job is None:
            return
        size = len(message.body)
        job.sent_bytes += size
        job.owed += size
        job.exchange.write(message.body)
        if job.sent_bytes == job.length:
            self._end(job, now)  # its client may leave now, before the word of its end has come
        elif job.owed >= self._grant_at and job.exchange.writable:
            if job.sent_bytes > self._trusted_after and not job.trusted:
                self._trust(job)
            self.grant(job)

    def _trust(self, job: Job) -> None:
        """More credit, once the client has shown that it reads."""
        if job.sent_bytes - job.exchange.unread_bytes > self._trusted_after:
            job.trusted = True
            job.owed += self._more

    def _on_end(self, message: End, now: float) -> None:
        job = self._admission.get(message.id)
        if job is not None:
            self._end(job, now)

    def _end(self, job: Job, now: float) -> None:
        self._admission.settle(job.submit.id)
        exchange, job.exchange.context = job.exchange, None
        exchange.finish()
        self._close(job, _outcome(job.status), now)

    def _on_failed(self, message: Failed, now: float) -> None:
        job = self._admission.settle(message.id)
        if job is not None:
            job.started_at = message.started_at
            kind = KINDS.get(message.kind, ErrorKind.INTERNAL)
            self._fail(job, Problem(kind, message.message), now)

    def _on_rejected(self, message: Rejected, now: float) -> None:
        if message.kind == ErrorKind.DRAINING and self._admission.keep(message.id, now):
            return  # only the adapter is being restarted: its successor gets the job
        job = self._admission.settle(message.id)
        if job is not None:
            kind = KINDS.get(message.kind, ErrorKind.INTERNAL)
            problem = Problem(kind, message.message, message.retry_after_s or None)
            self._fail(job, problem, now, Outcome.REJECTED)

    def _on_cancelled(self, message: Cancelled, now: float) -> None:
        departed = self._departed.pop(message.id, None)
        if departed is not None:
            key, route, at = departed
            self._ledger.close(
                key,
                Outcome.CANCELLED,
                at,
                route=route,
                status=ErrorKind.CLIENT_GONE.status,
                started_at=message.started_at,
            )

    def _fail(
        self, job: Job, problem: Problem, now: float, outcome: Outcome = Outcome.ERROR
    ) -> None:
        """The job's end is an error: as a response, or inside one that has begun."""
        if problem.kind is ErrorKind.INVALID_SESSION:
            outcome = Outcome.CANCELLED  # neither our fault, nor a lack of room
        if job.request_idx >= 0:
            problem.request_idx = job.request_idx
        exchange, job.exchange.context = job.exchange, None
        if job.begun:
            if job.stream:
                exchange.write(_EVENT_END + sse_error(problem))
            exchange.abort()
        else:
            job.status = problem.status
            exchange.fail(problem)
        if not job.key:
            self._ledger.refuse(problem.kind)
        self._close(job, outcome, now)

    def _close(self, job: Job, outcome: Outcome, now: float) -> None:
        if not job.key:
            return
        self._ledger.close(
            job.key,
            outcome,
            now,
            route=job.route,
            status=job.status,
            started_at=job.started_at,
            first_byte_at=job.first_byte_at,
            sent_bytes=job.sent_bytes,
        )


def _outcome(status: int) -> Outcome:
    return _SUCCESS if status < 500 else _ERROR
