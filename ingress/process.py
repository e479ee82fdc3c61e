"""The hands of one ingress process: its sockets and its timers.

Requests come in through ``door.py``; what comes back for them goes through ``answers.py``, and the
accounts go to the reporter. A session with the adapter or the reporter may end at any moment:
``admission.py`` and ``reporter/producer.py`` know what to send again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from backend_adapter.hook_messages import HOOKS_SOCKET, Forget, FromHooks, Prepare, Prepared
from backend_adapter.messages import FromAdapter
from ingress.admission import Admission
from ingress.answers import Answers
from ingress.auth import Authenticator
from ingress.budget import share
from ingress.client_port import cannot_listen
from ingress.door import Door
from ingress.envelope import decode, decode_unsigned
from ingress.http import Server
from ingress.management import Management
from ingress.questions import Questions
from ingress.routes import compile_routes
from ingress.spool import Spool
from ingress.strict import StrictDoor, guarded
from ingress.webhooks import WebhookPort
from reporter.messages import KeySuspect, PublicKey
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
#: Seconds for which it goes on, told to end, before it believes that another ingress comes.
WORD_S = 0.25
_log = logging.getLogger("ingress")


class Ingress:
    """The service that ``child.run`` runs.

    Args:
        runtime: what it runs in.
        port: the client port's sockets, bound, which outlive it; none: it shares the port with
            others, and opens it itself.
    """

    def __init__(self, runtime: Runtime, port: Sequence[socket.socket]) -> None:
        self._runtime = runtime
        self._sockets = port
        self._last = asyncio.Event()  #: no ingress after it accepts who waits at its port
        if not port:
            self._last.set()
        settings = runtime.settings
        # those that wait, and those that run: which is which, the adapter knows
        unanswered = settings.queue.max_jobs + settings.model.max_connections
        self._admission = Admission(unanswered, secrets.randbits(48))
        self._accounts = Producer(
            runtime.address(EVENTS_SOCKET), runtime.name, on_word=self._on_reporter
        )
        self._ledger = self._accounts.ledger
        self._answers = Answers(self._admission, self._ledger, settings.limits.stream_credit_bytes)
        auth = settings.auth
        self._authenticator = Authenticator(
            auth.mode, auth.scheme, settings.worker.public_url, auth.check_url,
            auth.replay_window, auth.cache_entries,
        )  # fmt: skip
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
            answers=self._answers,
        )
        self._app = guarded(self._door, settings, self._ledger.refuse)
        worker = settings.worker
        directory = spool_dir.of_run(settings, runtime.handoff.runtime_dir)
        spool = partial(Spool, directory, runtime.name, runtime.loop)
        limits = share(settings.limits, worker.processes)
        self._server = Server(self._app, limits, runtime.loop, spool)
        self._webhooks = WebhookPort(
            self._door, settings.limits, runtime.loop, worker.http_port, worker.processes > 1
        )
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
            if self._sockets:
                self._port = await self._server.serve(self._sockets, context)
            else:
                self._port = await self._server.listen(worker.host, worker.port, context, True)
        except OSError as error:
            cannot_listen(worker, error)
        if settings.auth.mode == "none" and not settings.auth.clients:
            _log.critical(
                "AUTHENTICATION IS OFF: everyone who reaches port %s may use the model", self._port
            )
        size = settings.limits.body_bytes + 2**20
        self._jobs = wire.Client(
            runtime.address(JOBS_SOCKET), runtime.name, FromAdapter, self._on_answers,
            on_up=self._jobs_up, on_down=self._jobs_down, max_message_bytes=size,
        )  # fmt: skip
        self._answers.send = self._jobs.send
        self._accounts.start()
        if settings.hooks.file:
            self._hooks = wire.Client(
                runtime.address(HOOKS_SOCKET), runtime.name, FromHooks, self._on_hooks,
                on_up=self._hooks_up, max_message_bytes=size,
            )  # fmt: skip
            runtime.every(
                HOUSEKEEPING_EVERY_S, lambda: self._door.expire_questions(time.monotonic())
            )
        await self._webhooks.open()
        runtime.every(EVENTS_EVERY_S, self._send_accounts)
        runtime.every(HOUSEKEEPING_EVERY_S, self._housekeep)

    def beat(self) -> Beat:
        """Ready means: the port is open. An adapter that is away is the adapter's own matter."""
        return Beat(
            pid=os.getpid(),
            ready=True,
            detail="" if self._jobs.up else "waiting for the adapter",
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
        """Is the worker.py, the adapter, or the whole worker, gone for good?"""
        if not isinstance(message, ChildNote):
            return
        if message.name == "worker":
            if self._admission.stopping and not self._last.is_set():  # it left them to another one
                self._runtime.spawn(self._server.hear_out())
            self._last.set()
        elif message.name == "hooks":
            self._door.hooks_failed(message.state == ChildState.FAILED)
        elif message.state == ChildState.FAILED:
            self._answers.adapter_failed(time.monotonic())

    def reload(self, settings: Settings) -> None:
        """New routes and certificates; what runs goes on as it was taken."""
        self._door.routes = compile_routes(settings.route)
        if self._certificate is not None:
            self._certificate.check()

    async def drain(self, deadline_s: float) -> None:
        """Accept nobody any more, finish what runs, and let the reporter know the last outcomes."""
        with suppress(TimeoutError):  # a signal that ends all of us may come before that word
            async with asyncio.timeout(WORD_S):
                await self._last.wait()
        end = self._runtime.loop.time() + deadline_s + LAST_ACCOUNTS_S
        self._admission.stopping = True
        _log.info("draining: %d requests under way", len(self._admission.jobs))
        if not await self._server.drain(deadline_s, last=self._last.is_set()):
            self._give_up()
        await self._webhooks.drain(LAST_ACCOUNTS_S)
        self._answers.close_departed()
        self._send_accounts()
        await self._accounts.settle(end)
        await asyncio.gather(self._server.see_off(), self._webhooks.see_off())

    def _give_up(self) -> None:
        _log.warning("cutting off %d requests: worker.drain_s is over", len(self._admission.jobs))
        self._answers.give_up(time.monotonic())
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

    # ------------------------------------------------------------------ jobs

    def _jobs_up(self) -> None:
        self._answers.link_up()
        self._runtime.beat_now()

    def _jobs_down(self) -> None:
        self._answers.link_down(time.monotonic())
        self._runtime.beat_now()

    def _on_answers(self, messages: list[Any]) -> None:
        self._answers.hear(messages, time.monotonic())

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
        self._answers.expire(time.monotonic())
        if isinstance(self._app, StrictDoor):
            self._app.keep()
        self._runtime.spawn(self._webhooks.open())
        if self._certificate is not None:
            self._certificate.check()
