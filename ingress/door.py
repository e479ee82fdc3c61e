"""What happens to a request at the door: refused with a reason, or turned into one job.

Between the HTTP server (``http.py``) and the jobs socket (``process.py``): it looks up the route,
has the envelope decoded and the signature checked, measures the workload and opens the account.
The payload's bytes go on untouched. It never sees a response; it awaits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from backend_adapter.messages import Submit
from ingress.admission import Admission, Job
from ingress.auth import Authenticator
from ingress.envelope import UNKNOWN_IDX, Envelope, Refused
from ingress.errors import KINDS, ErrorKind, Problem
from ingress.exchange import Exchange
from ingress.ledger import Ledger
from ingress.routes import Route
from reporter.messages import Outcome

#: Content types that can not be the JSON envelope; everything else is tried, as clients expect
#: (command-line tools send JSON as a form).
_NOT_JSON = (b"multipart/", b"audio/", b"video/", b"image/")
#: After which a client may try again whose signature could not be checked.
KEY_RETRY_S = 2.0
_ALLOW_POST = b"allow: POST\r\n"


class Door:
    """The HTTP server's application.

    Args:
        routes: path → Route.
        decode: takes the envelope apart, strictly or not.
        submit: hands a taken job to the adapter, now or when a session stands.
        cancel: tells the adapter that nobody wants a job any more.
        writable: the client of a streaming job has room again.
    """

    def __init__(
        self,
        routes: dict[bytes, Route],
        authenticator: Authenticator,
        admission: Admission,
        ledger: Ledger,
        *,
        decode: Callable[[bytes], Envelope],
        credit_bytes: int,
        submit: Callable[[Job], None],
        cancel: Callable[[Job], None],
        writable: Callable[[Job], None],
    ) -> None:
        self.routes = routes
        self.authenticator = authenticator
        self._admission = admission
        self._ledger = ledger
        self._decode = decode
        self._credit_bytes = credit_bytes
        self._submit = submit
        self._cancel = cancel
        self._writable = writable

    def on_head(self, exchange: Exchange) -> Problem | None:
        """Refuse before the body is read what needs no body to be refused."""
        if exchange.path not in self.routes:
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
        if exchange.header(b"content-encoding") not in (None, b"identity"):
            return Problem(
                ErrorKind.UNSUPPORTED_MEDIA_TYPE, "send the body without Content-Encoding"
            )
        if (exchange.header(b"content-type") or b"").lower().startswith(_NOT_JSON):
            return Problem(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "send a JSON body: application/json")
        if self._admission.full:
            return Problem(
                ErrorKind.OVERLOADED, "this worker holds as many requests as it may", 1.0
            )
        return None

    def on_request(self, exchange: Exchange) -> None:
        """A complete request: refuse it, or take it as a job.

        What else the client sent goes nowhere: the query and the bearer hold the endpoint's key.
        """
        now = time.monotonic()
        route = self.routes.get(exchange.path)
        if route is None:  # the settings were reloaded while the body arrived
            self._ledger.refuse(ErrorKind.UNKNOWN_ROUTE)
            exchange.fail(self._unknown_route())
            return
        try:
            envelope = self._decode(exchange.body)
            self.authenticator.check(envelope.auth_data)
        except Refused as refused:
            self._ledger.refuse(refused.kind)
            kind = KINDS[refused.kind]
            retry_after_s = KEY_RETRY_S if kind is ErrorKind.NO_PUBLIC_KEY else None
            exchange.fail(Problem(kind, refused.message, retry_after_s, extra=refused.extra))
            return
        if envelope.session_id:
            self._ledger.refuse(ErrorKind.INVALID_SESSION)
            exchange.fail(Problem(ErrorKind.INVALID_SESSION, "this worker keeps no such session"))
            return
        payload = envelope.payload
        workload = route.meter.measure(payload)
        auth = envelope.auth_data
        request_idx = auth.request_idx if auth is not None else UNKNOWN_IDX
        reqnum = auth.reqnum if auth is not None and request_idx != UNKNOWN_IDX else None
        key = self._ledger.open(request_idx, workload, now, reqnum)
        job = Job(
            Submit(
                id=self._admission.next_id(),
                path=route.target,
                lane=route.lane,
                lane_limit=route.lane_limit,
                workload=workload,
                max_queue_time_s=route.max_queue_time_s,
                expires_at=exchange.arrived_at + route.timeout_s,
                credit=self._credit_bytes,
                redeliver=route.redeliver,
                body=bytes(payload),
            ),
            exchange,
            route.path,
            key,
            request_idx,
            now,
        )
        exchange.context = job
        exchange.release_body()
        self._submit(job)

    def on_writable(self, exchange: Exchange) -> None:
        """The client has read enough that more may be sent."""
        if exchange.context is not None:
            self._writable(exchange.context)

    def on_disconnect(self, exchange: Exchange) -> None:
        """The client went away before its answer ended."""
        job: Job | None = exchange.context
        if job is None:
            return
        exchange.context = None
        if self._admission.settle(job.submit.id) is None:
            return
        self._cancel(job)
        self._ledger.close(
            job.key,
            Outcome.CANCELLED,
            time.monotonic(),
            route=job.route,
            status=499,
            started_at=job.started_at,
            first_byte_at=job.first_byte_at,
            sent_bytes=job.sent_bytes,
        )

    def _unknown_route(self) -> Problem:
        known = ", ".join(route.path for route in list(self.routes.values())[:20])
        return Problem(ErrorKind.UNKNOWN_ROUTE, f"no such route; this worker has: {known}")
