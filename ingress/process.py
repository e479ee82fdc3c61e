"""The hands of one ingress process: its sockets, its timers, and every answer's way to its client.

Requests come in through ``door.py``; here jobs leave for the adapter, answers return, credit flows
back, and the accounts go to the reporter. A session with the adapter or the reporter may end at any
moment: ``admission.py`` and ``reporter/producer.py`` know what to send again.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from backend_adapter.hook_messages import HOOKS_SOCKET, Forget, FromHooks, Prepare, Prepared
from backend_adapter.messages import (
    Answer,
    Cancel,
    Chunk,
    Credit,
    End,
    Failed,
    FromAdapter,
    Head,
    Rejected,
    SessionCall,
    Submit,
)
from ingress.admission import Admission, Job, Lost
from ingress.auth import Authenticator
from ingress.budget import share
from ingress.client_port import cannot_listen
from ingress.door import Door
from ingress.envelope import decode, decode_unsigned
from ingress.errors import KINDS, ErrorKind, Problem, sse_error
from ingress.http import Server
from ingress.management import Management
from ingress.questions import Questions
from ingress.routes import compile_routes
from ingress.spool import Spool
from ingress.webhooks import WebhookPort
from reporter.messages import KeySuspect, Outcome, PublicKey
from reporter.producer import EVENTS_EVERY_S, LAST_ACCOUNTS_S, Producer
from supervisor import spool_dir, wire
from supervisor.child import Runtime
from supervisor.exit_codes import ExitCode
from supervisor.messages import Beat, ChildNote, ChildState
from supervisor.settings import Settings
from supervisor.tls import CertificateWatch, TlsError, make_context

JOBS_SOCKET = "jobs"
EVENTS_SOCKET = "events"
HOUSEKEEPING_EVERY_S = 1.0
#: Closes an event of a stream that was cut in its middle; between two events it means nothing.
_EVENT_END = b"\n\n"
_log = logging.getLogger("ingress")


class Ingress:
    """The service that ``child.run`` runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        settings = runtime.settings
        self._admission = Admission(settings.queue.max_jobs, secrets.randbits(48))
        self._accounts = Producer(
            runtime.address(EVENTS_SOCKET), runtime.name, on_word=self._on_reporter
        )
        self._ledger = self._accounts.ledger
        auth = settings.auth
        self._authenticator = Authenticator(
            auth.mode,
            auth.scheme,
            settings.worker.public_url,
            auth.check_url,
            auth.replay_window,
            auth.cache_entries,
        )
        self._questions = Questions(settings.hooks.timeout_s, secrets.randbits(48))
        self._door = Door(
            compile_routes(settings.route),
            self._authenticator,
            self._admission,
            self._ledger,
            self._questions,
            Management(settings.engine.token, settings.worker.update_file),
            decode=decode_unsigned if auth.mode == "none" else decode,
            credit_bytes=settings.limits.stream_credit_bytes,
            ask=self._ask,
            submit=self._submit,
            cancel=self._cancel,
            writable=self._grant,
        )
        self._grant_at = settings.limits.stream_credit_bytes // 4
        worker = settings.worker
        directory = spool_dir.of_run(settings, runtime.handoff.runtime_dir)
        spool = partial(Spool, directory, runtime.name, runtime.loop)
        limits = share(settings.limits, worker.processes)
        self._server = Server(self._door, limits, runtime.loop, spool)
        self._webhooks = WebhookPort(
            self._door, settings.limits, runtime.loop, worker.http_port, worker.processes > 1
        )
        self._handlers: dict[type, Callable[[Any], None]] = {
            Answer: self._on_answer,
            Head: self._on_head,
            Chunk: self._on_chunk,
            End: self._on_end,
            Failed: self._on_failed,
            Rejected: self._on_rejected,
        }
        self._certificate: CertificateWatch | None = None
        self._jobs: wire.Client
        self._hooks: wire.Client | None = None  # where a worker.py is used
        self._port = 0

    # ------------------------------------------------------------------ the runtime's side

    async def start(self) -> None:
        """Open the client port, then both sockets. A taken port ends the process, by name."""
        settings, runtime = self._runtime.settings, self._runtime
        context = None
        if settings.tls.enabled:
            try:
                context = make_context(settings.tls.cert, settings.tls.key)
            except TlsError as error:
                _log.critical("%s", error)
                os._exit(ExitCode.SETTINGS)
            self._certificate = CertificateWatch(context, settings.tls.cert, settings.tls.key)
        worker = settings.worker
        try:
            self._port = await self._server.listen(
                worker.host, worker.port, context, reuse_port=worker.processes > 1
            )
        except OSError as error:
            cannot_listen(worker, error)
        if settings.auth.mode == "none":
            _log.critical(
                "AUTHENTICATION IS OFF: everyone who reaches port %s may use the model", self._port
            )
        size = settings.limits.body_bytes + 2**20
        self._jobs = wire.Client(
            runtime.address(JOBS_SOCKET), runtime.name, FromAdapter, self._on_answers,
            on_up=self._jobs_up, on_down=self._jobs_down, max_message_bytes=size,
        )  # fmt: skip
        self._accounts.start()
        if settings.hooks.file:
            self._hooks = wire.Client(
                runtime.address(HOOKS_SOCKET), runtime.name, FromHooks, self._on_hooks,
                on_up=self._hooks_up, max_message_bytes=size,
            )  # fmt: skip
            runtime.every(HOUSEKEEPING_EVERY_S, self._expire_questions)
        await self._webhooks.open()
        runtime.every(EVENTS_EVERY_S, self._send_accounts)
        runtime.every(HOUSEKEEPING_EVERY_S, self._housekeep)

    def beat(self) -> Beat:
        """Ready means: the port is open. An adapter that is away is the adapter's own matter."""
        detail = "" if self._jobs.up else "waiting for the adapter"
        return Beat(
            pid=os.getpid(),
            ready=True,
            detail=detail,
            gauges={
                "port": self._port,
                "lacks_key": self._authenticator.lacks_key,
                "connections": self._server.connections,
                "buffered_bytes": self._server.buffered_bytes,
                "spooled_bytes": self._server.spooled_bytes,
                "cut_readers": self._server.cut_readers,
                "in_flight": len(self._admission.jobs),
                "requests": self._ledger.requests,
                "redelivered": self._admission.redelivered,
                "malformed": self._jobs.malformed + self._accounts.malformed,
            },
        )

    def on_control(self, message: Any) -> None:
        """Is the worker.py gone for good?"""
        if isinstance(message, ChildNote) and message.name == "hooks":
            self._door.hooks_failed(message.state == ChildState.FAILED)

    def reload(self, settings: Settings) -> None:
        """New routes and certificates; what runs goes on as it was taken."""
        self._door.routes = compile_routes(settings.route)
        if self._certificate is not None:
            self._certificate.check()

    async def drain(self, deadline_s: float) -> None:
        """Close the port, finish what runs, and let the reporter know the last outcomes."""
        end = self._runtime.loop.time() + deadline_s + LAST_ACCOUNTS_S
        self._admission.stopping = True
        _log.info("draining: %d requests under way", len(self._admission.jobs))
        if not await self._server.drain(deadline_s):
            self._give_up()
        await self._webhooks.drain(LAST_ACCOUNTS_S)
        self._send_accounts()
        await self._accounts.settle(end)

    def _give_up(self) -> None:
        _log.warning("cutting off %d requests: worker.drain_s is over", len(self._admission.jobs))
        for job in list(self._admission.jobs.values()):
            self._admission.settle(job.submit.id)
            self._cancel(job)
            text = "the worker stopped before the answer was complete; send the request elsewhere"
            self._fail(job, Problem(ErrorKind.DRAINING, text))
        self._door.give_up_questions()

    async def stop(self) -> None:
        """Close everything."""
        self._server.close()
        self._webhooks.close()
        self._jobs.close()
        self._accounts.close()
        if self._hooks is not None:
            self._hooks.close()

    # ------------------------------------------------------------------ a worker.py's word

    def _ask(self, message: Prepare | Forget) -> bool:
        return self._hooks is not None and self._hooks.send(message)

    def _hooks_up(self) -> None:
        messages, spent = self._questions.again()
        self._door.hooks_died_of(spent)
        for message in messages:
            self._ask(message)

    def _on_hooks(self, messages: list[Any]) -> None:
        now = time.monotonic()
        for message in messages:
            if type(message) is Prepared:
                self._door.on_prepared(message, now)
            else:
                self._door.on_refused(message)

    def _expire_questions(self) -> None:
        self._door.expire_questions(time.monotonic())

    # ------------------------------------------------------------------ jobs

    def _submit(self, job: Job) -> None:
        if self._admission.take(job):
            self._jobs.send(job.submit)

    def _cancel(self, job: Job) -> None:
        submit = job.submit
        if isinstance(submit, Submit):
            self._jobs.send(Cancel(submit.id))
        elif submit.call == "create":  # nobody will ever name it
            self._jobs.send(
                SessionCall(self._admission.next_id(), "end", submit.session_id, submit.auth)
            )

    def _jobs_up(self) -> None:
        for job in self._admission.link_up():
            self._jobs.send(job.submit)
        self._runtime.beat_now()

    def _jobs_down(self) -> None:
        self._lose(self._admission.link_down(time.monotonic()))
        self._runtime.beat_now()

    def _lose(self, lost: list[Lost]) -> None:
        for item in lost:
            self._fail(item.job, Problem(KINDS[item.kind], item.message, 1.0))

    # ------------------------------------------------------------------ answers

    def _on_answers(self, messages: list[Any]) -> None:
        handlers = self._handlers
        for message in messages:
            handlers[type(message)](message)

    def _on_answer(self, message: Answer) -> None:
        job = self._admission.settle(message.id)
        if job is None:
            return
        job.status = message.status
        job.started_at = message.started_at
        job.first_byte_at = time.monotonic()
        job.sent_bytes = len(message.body)
        exchange, job.exchange.context = job.exchange, None
        exchange.respond(message.status, message.headers, message.body)
        self._close(job, Outcome.SUCCESS if message.status < 500 else Outcome.ERROR)

    def _on_head(self, message: Head) -> None:
        job = self._admission.get(message.id)
        if job is None:
            return
        job.begun = True
        job.status = message.status
        job.started_at = message.started_at
        job.first_byte_at = time.monotonic()
        # in a body of known length an error event could pass for its end
        job.stream = message.content_length < 0 and b"text/event-stream" in message.headers
        job.exchange.begin(message.status, message.headers, message.content_length)

    def _on_chunk(self, message: Chunk) -> None:
        job = self._admission.get(message.id)
        if job is None:
            return
        size = len(message.body)
        job.sent_bytes += size
        job.owed += size
        job.exchange.write(message.body)
        if job.owed >= self._grant_at and job.exchange.writable:
            self._grant(job)

    def _grant(self, job: Job) -> None:
        """What left for the client may be sent again by the model server."""
        if job.owed:
            self._jobs.send(Credit(job.submit.id, job.owed))
            job.owed = 0

    def _on_end(self, message: End) -> None:
        job = self._admission.settle(message.id)
        if job is None:
            return
        exchange, job.exchange.context = job.exchange, None
        exchange.finish()
        self._close(job, Outcome.SUCCESS if job.status < 500 else Outcome.ERROR)

    def _on_failed(self, message: Failed) -> None:
        job = self._admission.settle(message.id)
        if job is not None:
            job.started_at = message.started_at
            self._fail(job, Problem(KINDS.get(message.kind, ErrorKind.INTERNAL), message.message))

    def _on_rejected(self, message: Rejected) -> None:
        if message.kind == ErrorKind.DRAINING and self._admission.keep(message.id):
            return  # only the adapter is being restarted: its successor gets the job
        job = self._admission.settle(message.id)
        if job is not None:
            kind = KINDS.get(message.kind, ErrorKind.INTERNAL)
            problem = Problem(kind, message.message, message.retry_after_s or None)
            self._fail(job, problem, Outcome.REJECTED)

    def _fail(self, job: Job, problem: Problem, outcome: Outcome = Outcome.ERROR) -> None:
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
        self._close(job, outcome)

    def _close(self, job: Job, outcome: Outcome) -> None:
        if not job.key:
            return
        self._ledger.close(
            job.key,
            outcome,
            time.monotonic(),
            route=job.route,
            status=job.status,
            started_at=job.started_at,
            first_byte_at=job.first_byte_at,
            sent_bytes=job.sent_bytes,
        )

    # ------------------------------------------------------------------ accounts and key

    def _send_accounts(self) -> None:
        refused: dict[str, int] = {}
        for counts in (self._server.refused, self._webhooks.refused):
            for kind, count in counts.items():
                refused[kind.value] = refused.get(kind.value, 0) + count
        self._ledger.refused_at_port(refused)
        self._accounts.flush()
        if self._accounts.up and self._authenticator.take_suspicion():
            self._accounts.send(KeySuspect())

    def _on_reporter(self, message: Any) -> None:
        if isinstance(message, PublicKey):
            try:
                lacked = self._authenticator.lacks_key
                self._authenticator.set_key(message.pem)
                if lacked:
                    self._runtime.beat_now()
            except ValueError as error:
                _log.error("%s; the key from before stays in use", error)

    def _housekeep(self) -> None:
        self._lose(self._admission.expire(time.monotonic()))
        self._runtime.spawn(self._webhooks.open())
        if self._certificate is not None:
            self._certificate.check()
