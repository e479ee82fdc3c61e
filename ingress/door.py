"""What happens to a request at the door: refused with a reason, or turned into one job.

Between the HTTP server (``http.py``) and what becomes of jobs (``answers.py``): it looks up the
route, has the envelope decoded and the signature checked, measures the workload and opens the
account. The payload's bytes go on untouched, unless a worker.py forms it: then that is asked first,
and the request becomes a job when the answer comes. It never sees a response; it awaits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from backend_adapter.hook_messages import ROUTE_HEADER, TICKET_HEADER, Forget, Prepare, Prepared
from backend_adapter.hook_messages import Refused as HookRefused
from backend_adapter.messages import FilePart, Submit
from ingress import session_calls
from ingress.admission import Admission, Job
from ingress.answers import Answers
from ingress.auth import Authenticator
from ingress.envelope import UNKNOWN_IDX, Envelope, Refused
from ingress.errors import KINDS, ErrorKind, Problem
from ingress.exchange import Exchange
from ingress.management import Management
from ingress.questions import Question, Questions
from ingress.routes import SESSION_CALLS, UPDATE_PATH, Route, Routes
from ingress.spool import RETRY_S, Bytes, payload_of, whole_of
from ingress.workload import LEAST_WORKLOAD, quantised
from reporter.producer_ledger import ProducerLedger

#: Content types that can not be the JSON envelope; everything else is tried, as clients expect
#: (command-line tools send JSON as a form).
_NOT_JSON = (b"multipart/", b"audio/", b"video/", b"image/")
#: Requests of one process that may wait for a worker.py's word.
MAX_QUESTIONS = 2_000
#: After which a client may try again whose signature could not be checked.
KEY_RETRY_S = 2.0
#: Workload where a worker.py says none that can be used.
DEFAULT_WORKLOAD = 100.0
JSON_TYPE = b"content-type: application/json\r\n"
_ALLOW_POST = b"allow: POST\r\n"
#: Header lines of a client that a worker.py's function does not see: those of the connection, those
#: of the body, which is sent anew, and those that hold keys.
_WITHHELD = frozenset(
    (
        b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"expect", b"content-encoding", b"content-length", b"content-type", b"host",
        b"proxy-connection", b"authorization", b"proxy-authorization", b"cookie",
        b"sec-websocket-key1",
    )
)  # fmt: skip
#: Header lines of which only the first goes on: with two, the function would not get the request.
_ONCE = frozenset(
    (b"user-agent", b"content-location", b"content-range", b"etag", b"max-forwards", b"server")
)


class Door:
    """The HTTP server's application.

    Args:
        routes: every path that may be POSTed to.
        decode: takes the envelope apart, strictly or not.
        questions: requests that wait for a worker.py's word.
        management: answers what the engine asks of the worker itself.
        ask: hands a question to the hook host, now or when a session stands; or has one forgotten.
        answers: where jobs go, and what becomes of them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        routes: Routes,
        authenticator: Authenticator,
        admission: Admission,
        ledger: ProducerLedger,
        questions: Questions,
        management: Management,
        *,
        decode: Callable[[Bytes], Envelope],
        credit_bytes: int,
        ask: Callable[[Prepare | Forget], bool],
        answers: Answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routes = routes
        self.authenticator = authenticator
        self._admission = admission
        self._ledger = ledger
        self._questions = questions
        self._management = management
        self._no_hooks = False
        self._ask = ask
        self._decode = decode
        self._credit_bytes = credit_bytes
        self._answers = answers
        self._clock = clock

    def takes_updates_at(self, path: bytes) -> bool:
        """It is the engine's own call, unless a route of the settings has its path."""
        return path == UPDATE_PATH and self.routes.find(path) is None

    def on_head(self, exchange: Exchange) -> Problem | None:
        """Refuse before the body is read what needs no body to be refused."""
        route = self.routes.find(exchange.path)
        if route is None and exchange.path not in SESSION_CALLS:
            if exchange.path == UPDATE_PATH:
                return self._management.refusal(exchange)
            return self._unknown_route()
        if exchange.method != b"POST":
            return Problem(
                ErrorKind.METHOD_NOT_ALLOWED, "this route takes POST only", headers=_ALLOW_POST
            )
        if exchange.content_length < 0 and not exchange.chunked:
            exchange.keep_alive = False  # a body that was not announced would pass for a request
            return Problem(
                ErrorKind.LENGTH_REQUIRED,
                "send a JSON body with Content-Length or Transfer-Encoding: chunked",
            )
        if exchange.content_encoding not in (b"", b"identity"):
            return Problem(
                ErrorKind.UNSUPPORTED_MEDIA_TYPE, "send the body without Content-Encoding"
            )
        if exchange.content_type.startswith(_NOT_JSON):
            return Problem(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "send a JSON body: application/json")
        asks = route is not None and route.prepare
        if self._admission.full or (asks and len(self._questions.open) >= MAX_QUESTIONS):
            return _overloaded()
        return None

    def on_request(self, exchange: Exchange) -> None:
        """A complete request: refuse it, or take it as a job.

        What else the client sent goes nowhere: the query and the bearer hold the endpoint's key.
        """
        if self._admission.full:  # others have come while its body did
            self._ledger.refuse(ErrorKind.OVERLOADED)
            exchange.fail(_overloaded())
            return
        now = self._clock()
        route = self.routes.find(exchange.path)
        if route is None:
            self._on_own_path(exchange, now)
            return
        try:
            envelope = self._decode(exchange.body)
            self.authenticator.check(envelope.auth_data)
        except Refused as refused:
            self._refuse(exchange, refused)
            return
        auth = envelope.auth_data
        session_id = envelope.session_id or ""
        request_idx = auth.request_idx if auth is not None else UNKNOWN_IDX
        reqnum = auth.reqnum if auth is not None and request_idx != UNKNOWN_IDX else None
        if self._no_hooks and (route.prepare or route.hosted):
            self._ledger.refuse(ErrorKind.HOOKS_DOWN)
            problem = _hooks_down()
            problem.request_idx = request_idx if request_idx >= 0 else None
            exchange.fail(problem)
            return
        if route.prepare:
            number = self._questions.next_id()
            message = Prepare(number, route.path, *whole_of(exchange.body, exchange.file))
            question = Question(message, exchange, route, request_idx, reqnum, session_id, now)
            self._questions.take(question)
            exchange.context = question
            exchange.body = b""
            question.asked += self._ask(message)
            return
        payload = envelope.payload
        workload = route.meter.measure(payload)
        if route.hosted:
            body, file = whole_of(exchange.body, exchange.file)
        else:
            body, file = payload_of(payload, exchange.body, exchange.file)
        self._take(
            exchange, route, request_idx, reqnum, session_id, workload, body, file, JSON_TYPE, now
        )

    def _refuse(self, exchange: Exchange, refused: Refused) -> None:
        self._ledger.refuse(refused.kind)
        kind = KINDS[refused.kind]
        retry_after_s = KEY_RETRY_S if kind is ErrorKind.NO_PUBLIC_KEY else None
        exchange.fail(Problem(kind, refused.message, retry_after_s, extra=refused.extra))

    def _on_own_path(self, exchange: Exchange, now: float) -> None:
        """A request to the worker itself."""
        call = SESSION_CALLS.get(exchange.path)
        if exchange.path == UPDATE_PATH:
            # looked at again: it may have been a route when its head came
            problem = self._management.refusal(exchange)
            if problem is None:
                self._management.update(exchange)
            else:
                self._ledger.refuse(problem.kind)
                exchange.fail(problem)
        elif call is None:  # the settings were reloaded while the body arrived
            self._ledger.refuse(ErrorKind.UNKNOWN_ROUTE)
            exchange.fail(self._unknown_route())
        else:
            try:
                message = session_calls.read(
                    call,
                    self._admission.next_id(),
                    exchange.body,
                    self._decode,
                    lambda envelope: self.authenticator.check(envelope.auth_data),
                    max(session_calls.MAX_COST, self.routes.most),
                )
            except Refused as refused:
                self._refuse(exchange, refused)
                return
            route = exchange.path.decode()
            exchange.context = job = Job(message, exchange, route, 0, message.request_idx, now)
            exchange.release_body()
            self._answers.submit(job)

    def on_prepared(self, answer: Prepared, now: float) -> None:
        """A worker.py has said what a request amounts to."""
        question = self._questions.settle(answer.id)
        if question is None:
            return
        exchange, route = question.exchange, question.route
        try:
            headers, body, file = self._formed(question, answer)
        except Problem as problem:
            self._turn_away(question, problem)
            return
        except Refused:  # it was read before: its file is not what it was
            self._turn_away(question, Problem(ErrorKind.INTERNAL))
            return
        workload = quantised(max(answer.workload, LEAST_WORKLOAD), DEFAULT_WORKLOAD)
        self._take(
            exchange,
            route,
            question.request_idx,
            question.reqnum,
            question.session_id,
            workload,
            body,
            file,
            headers,
            now,
        )

    def _formed(self, question: Question, answer: Prepared) -> tuple[bytes, bytes, FilePart | None]:
        """Headers and body of the job that a worker.py has made of a request."""
        asked, exchange = question.message, question.exchange
        if question.route.hosted:
            ticket = f"{TICKET_HEADER}: {answer.ticket}\r\n".encode() if answer.ticket else b""
            return JSON_TYPE + ticket, asked.body, asked.file
        if not answer.untouched:
            exchange.replace_body(answer.body)
            return answer.headers, answer.body, None
        whole: Bytes = asked.body if exchange.file is None else exchange.file.map()
        return JSON_TYPE, *payload_of(self._decode(whole).payload, whole, exchange.file)

    def on_refused(self, answer: HookRefused) -> None:
        """A worker.py has refused a request, or failed at it."""
        question = self._questions.settle(answer.id)
        if question is not None:
            extra = msgspec.json.decode(answer.extra) if answer.extra else None
            kind = KINDS.get(answer.kind, ErrorKind.HOOK_FAILED)
            retry_after_s = RETRY_S if kind is ErrorKind.MEMORY else None
            self._turn_away(question, Problem(kind, answer.message, retry_after_s, extra=extra))

    def expire_questions(self, now: float) -> None:
        """Who waited too long for a worker.py's word is told so."""
        for question in self._questions.expire(now):
            self._ask(Forget(question.message.id))
            text = (
                f"worker.py has not said in {self._questions.timeout_s:g} s what a request to"
                f" {question.route.path} amounts to"
            )
            self._turn_away(question, Problem(ErrorKind.HOOK_TIMEOUT, text))

    def hooks_died_of(self, questions: list[Question]) -> None:
        """The worker.py has died more than once while it was asked these."""
        for question in questions:
            text = f"worker.py died while it was asked about a request to {question.route.path}"
            self._turn_away(question, Problem(ErrorKind.HOOK_FAILED, text))

    def hooks_failed(self, failed: bool) -> None:
        """The worker.py will not be started again by itself (or it was, after all).

        While it is only being restarted, requests wait for it.
        """
        self._no_hooks = failed
        for question in self._questions.give_up() if failed else ():
            self._turn_away(question, _hooks_down())

    def give_up_questions(self) -> None:
        """The worker stops: nobody waits for a worker.py's word any more."""
        for question in self._questions.give_up():
            self._turn_away(question, Problem(ErrorKind.DRAINING))

    def _turn_away(self, question: Question, problem: Problem) -> None:
        self._ledger.refuse(problem.kind)
        if question.request_idx >= 0:
            problem.request_idx = question.request_idx
        question.exchange.context = None
        question.exchange.fail(problem)

    def _take(
        self,
        exchange: Exchange,
        route: Route,
        request_idx: int,
        reqnum: int | None,
        session_id: str,
        workload: float,
        body: bytes,
        file: FilePart | None,
        headers: bytes,
        now: float,
    ) -> None:
        """The request becomes a job."""
        if route.hosted:
            headers += hosted_headers(exchange.headers, route.path)
        key = self._ledger.open(request_idx, workload, now, reqnum, inside=bool(session_id))
        job = Job(
            Submit(
                id=self._admission.next_id(),
                path=(not route.hosted and route.target) or exchange.path.decode("latin-1"),
                lane=route.lane,
                lane_limit=route.lane_limit,
                workload=workload,
                max_queue_time_s=route.max_queue_time_s,
                expires_at=exchange.arrived_at + route.timeout_s,
                credit=self._credit_bytes,
                redeliver=route.redeliver,
                headers=headers,
                body=body,
                hosted=route.hosted,
                session_id=session_id,
                file=file,
            ),
            exchange,
            route.path,
            key,
            request_idx,
            now,
        )
        exchange.context = job
        exchange.release_body()
        self._answers.submit(job)

    def on_writable(self, exchange: Exchange) -> None:
        """The client has read enough that more may be sent."""
        if isinstance(exchange.context, Job):
            self._answers.grant(exchange.context)

    def on_disconnect(self, exchange: Exchange) -> None:
        """The client went away before its answer ended."""
        job: Job | Question | None = exchange.context
        if job is None:
            return
        exchange.context = None
        if isinstance(job, Question):
            if self._questions.settle(job.message.id) is not None:
                self._ask(Forget(job.message.id))
                self._ledger.refuse(ErrorKind.CLIENT_GONE)
            return
        self._answers.leave(job, self._clock())

    def _unknown_route(self) -> Problem:
        known = ", ".join(self.routes.names[:20])
        return Problem(ErrorKind.UNKNOWN_ROUTE, f"no such route; this worker has: {known}")


def _overloaded() -> Problem:
    return Problem(ErrorKind.OVERLOADED, "this worker holds as many requests as it may", 1.0)


def _hooks_down() -> Problem:
    text = "worker.py failed for good: the worker's log says why; send the request elsewhere"
    return Problem(ErrorKind.HOOKS_DOWN, text)


def hosted_headers(headers: list[tuple[bytes, bytes]], route: str) -> bytes:
    """Header lines of a job that a worker.py answers: its route, and what the client sent."""
    lines = [f"{ROUTE_HEADER}: {route}\r\n".encode()]
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _WITHHELD or name.startswith(b"x-lighterman-") or name in seen & _ONCE:
            continue
        seen.add(name)
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)
