"""The hands of the reporter: accounts in, posts to the engine out, the engine's key, the pages.

Load, outbox, keyring and faults decide; the store and the engine client do the slow things on
their own time. It sits on no request's path: ingress keeps what it has not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, assert_never

from reporter import inheritance, key_file, outbox
from reporter.engine_client import EngineClient, EngineError
from reporter.faults import Faults
from reporter.health_pages import HealthPages, HealthPagesError, View
from reporter.keyring import Keyring
from reporter.ledger import pending
from reporter.load import Applied, Facts, Load
from reporter.messages import (
    Ack,
    Events,
    KeySuspect,
    ModelReport,
    PublicKey,
    QueueReport,
    ToReporter,
)
from reporter.metrics import Gauges, Metrics
from reporter.outbox import Outbox
from reporter.records import DropRows
from reporter.store import Store
from supervisor import wire
from supervisor.child import Runtime
from supervisor.messages import Beat, ChildNote, ChildState, ModelState, Unready
from supervisor.settings import Settings

EVENTS_SOCKET = "events"
#: The supervisor's name for the engine that it runs itself.
LOCAL_ENGINE = "engine"
#: Longest time between two looks at what is due.
STEP_EVERY_S = 0.1
HOUSEKEEPING_EVERY_S = 1.0
#: A key that is missing for longer than this is an error that the engine should hear of.
KEY_PATIENCE_S = 10.0
_GB = 2**30
#: Between two tries to open the pages.
PAGES_RETRY_S = 5.0
#: In any other state a child keeps the worker from serving, and the engine must hear of it.
_WELL = (ChildState.READY, ChildState.STARTING, ChildState.WAITING)
#: In any other state a child is broken.
_LIVE = (*_WELL, ChildState.STOPPING)
_log = logging.getLogger("reporter")


class Reporter:
    """The service that ``child.run`` runs."""

    def __init__(self, runtime: Runtime) -> None:
        settings = runtime.settings
        self._runtime = runtime
        self._load = Load(runtime.handoff.run_id)
        self._faults = Faults()
        self._outbox = Outbox(settings.engine)
        self._store = Store(Path(settings.worker.state_dir))
        self._engine = EngineClient(settings.engine, settings.worker.id, runtime.mask)
        self._wants_key = settings.auth.mode == "signature"
        self._keyring = Keyring(settings.engine.addresses if self._wants_key else ())
        self._metrics = Metrics(route.path for route in settings.route)
        self._pages = HealthPages(
            settings.worker.admin_host, settings.worker.admin_port, self._view, self._render
        )
        self._model = ModelReport(ready=False)
        self._model_state = ModelState(ChildState.WAITING)
        self._queue = QueueReport(0, 0, 0, 0)
        self._children: dict[str, ChildNote] = {}
        self._waits_for = ""  #: in the words of ``status``
        self._was_ready = False
        self._told_ready = False  #: the engine has accepted a report that says so
        self._last_error: EngineError | None = None  #: of the newest post
        self._last_post_at = 0.0
        self._started_at = time.monotonic()
        self._server: wire.Server

    # ------------------------------------------------------------------ the runtime's side

    async def start(self) -> None:
        """Take up the accounts where they were left, then listen."""
        runtime = self._runtime
        state = await asyncio.to_thread(inheritance.settle, self._store, self._load.run_id)
        adopted = self._load.adopt(state)
        self._outbox = Outbox(runtime.settings.engine, state.rows, state.more_rows)
        self._applied(adopted)
        self._server = wire.Server(
            runtime.address(EVENTS_SOCKET), ToReporter, self._on_messages, on_up=self._on_producer
        )
        self._runtime.spawn(self._open_pages())
        runtime.every(STEP_EVERY_S, self._step)
        runtime.every(HOUSEKEEPING_EVERY_S, self._housekeep)

    def beat(self) -> Beat:
        """Ready means: accounts can be taken."""
        totals = self._load.totals
        since = self._last_post_at
        return Beat(
            pid=os.getpid(),
            ready=True,
            gauges={
                "reported_ready": self._told_ready,
                "load": round(pending(totals), 3),
                "working": len(self._load.working),
                "requests": totals.requests,
                "served": round(totals.served, 3),
                "max_perf": round(self._model.max_perf, 3),
                "error": self._faults.text,
                "last_post_s": round(time.monotonic() - since, 1) if since else -1.0,
                "last_post_error": str(self._last_error or ""),
                "last_post_kind": getattr(self._last_error, "kind", ""),
                "posted": self._outbox.status.posted,
                "rows_waiting": self._outbox.waiting,
                "drift": self._load.drift,
                "store_failures": self._store.failures,
                "malformed": self._server.malformed,
                "admin_port": self._pages.port,
            },
        )

    def on_control(self, message: Any) -> None:
        """How the other processes are."""
        if isinstance(message, ChildNote) and message.name == LOCAL_ENGINE:
            if message.state == ChildState.READY:
                if message.generation > 1:
                    self._load.tell_load_time_again()
                self._keyring.hasten()
                self._outbox.changed()
                self._outbox.status.hasten()
        elif isinstance(message, ChildNote):
            self._children[message.name] = message
            text = "" if message.state in _WELL else message.reason or f"it is {message.state}"
            comes_back = message.generation > 1 and message.state != ChildState.READY
            if not text and comes_back:
                return  # what was wrong is over when it is ready again, not when it starts
            if self._faults.set(message.name, self._runtime.mask(text)):
                self._outbox.changed()
        elif isinstance(message, Unready):
            self._waits_for = message.reason
        elif isinstance(message, ModelState):
            self._model_state = message
            down = message.state in (ChildState.BACKOFF, ChildState.FAILED)
            if down and message.generation >= self._model.generation:
                # the adapter says so too, but it may be the one that is down
                self._on_model(
                    ModelReport(
                        False, f"the model server died: {message.reason}", 0.0,
                        message.generation, self._model.max_perf,
                    )
                )  # fmt: skip

    def reload(self, settings: Settings) -> None:
        """Addresses and token belong to a run; new routes have their own figures."""
        self._metrics.routes = frozenset(route.path for route in settings.route)

    async def drain(self, deadline_s: float) -> None:
        """Everything else has stopped: one last report, and every row that waits."""
        self._outbox.flush()
        async with asyncio.timeout(deadline_s):
            while not self._outbox.idle:
                self._step()
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Close everything; what the engine has not got stays in the store."""
        self._server.close()
        await self._pages.stop()
        await self._engine.close()
        self._store.close()

    async def _open_pages(self) -> None:
        """Pages are for people: the engine hears once that there are none, and the work goes on."""
        said = ""
        while True:
            try:
                return await self._pages.start()
            except HealthPagesError as error:
                if str(error) != said:
                    said = str(error)
                    _log.error("%s", said)
                    self._faults.set("admin", said)
                    self._faults.clear("admin")
                    self._outbox.changed()
            await asyncio.sleep(PAGES_RETRY_S)

    # ------------------------------------------------------------------ producers

    def _on_messages(self, peer: str, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Events):
                now = time.monotonic()
                self._applied(self._load.apply(message, now, time.time() - now))
            elif isinstance(message, QueueReport):
                self._queue = message
            elif isinstance(message, ModelReport):
                self._on_model(message)
            elif isinstance(message, KeySuspect):
                self._keyring.suspect()
            else:
                assert_never(message)

    def _on_producer(self, peer: str) -> None:
        if self._keyring.pem:
            self._server.send(peer, PublicKey(self._keyring.pem))

    def _on_model(self, report: ModelReport) -> None:
        if report != self._model:
            self._model = report
            self._faults.set("model", self._runtime.mask(report.error))
            self._outbox.changed()

    def _applied(self, applied: Applied) -> None:
        """Make a change safe, then acknowledge it."""
        if applied.changes:
            self._outbox.changed()
            self._outbox.add(applied.rows)
            self._metrics.count(applied.closed)
            future = self._store.commit(applied.changes)
            if applied.ack is not None:
                soon = self._runtime.loop.call_soon_threadsafe
                future.add_done_callback(lambda _: soon(self._acknowledge, applied))
        elif applied.ack is not None:
            self._acknowledge(applied)

    def _acknowledge(self, applied: Applied) -> None:
        """A file that is behind is written anew later: until then memory has to do."""
        if applied.ack is not None:
            self._server.send(applied.producer, Ack(applied.ack, applied.epoch))

    # ------------------------------------------------------------------ posts

    def _step(self) -> None:
        now = time.monotonic()
        if now >= self._outbox.wake_at():
            for command in self._outbox.step(now):
                self._carry_out(command)
        address = self._keyring.step(now)
        if address is not None:
            self._runtime.spawn(self._fetch_key(address))

    def _carry_out(self, command: outbox.Command) -> None:
        match command:
            case outbox.PostStatus(address):
                self._runtime.spawn(self._post_status(address))
            case outbox.PostRequests():
                self._runtime.spawn(self._post_requests(command))
            case outbox.LoadRows():
                self._runtime.spawn(self._load_rows(command))
            case DropRows():
                self._store.commit([command])
            case _:
                assert_never(command)

    async def _post_status(self, address: str) -> None:
        facts, faults = self._facts(), self._faults.snapshot()
        report = self._load.status_report(facts)
        accepted = await self._accepted(self._engine.post_status(address, report.body))
        if accepted:
            self._store.commit([self._load.report_acknowledged(report)])
            if self._faults.told(faults):
                self._outbox.changed()
            told_ready = facts.load_time_s > 0 and not facts.error_msg
            if told_ready != self._told_ready:
                self._told_ready = told_ready
                self._runtime.beat_now()
        else:
            # who was away may have forgotten us, and have another key
            self._load.tell_load_time_again()
            self._keyring.suspect()
        self._outbox.status_done(accepted, time.monotonic())

    async def _post_requests(self, command: outbox.PostRequests) -> None:
        accepted = await self._accepted(self._engine.post_requests(command.address, command.rows))
        self._outbox.requests_done(accepted, time.monotonic())
        self._step()  # a reporter that died before these rows are dropped would tell them again

    async def _accepted(self, post: Coroutine[Any, Any, None]) -> bool:
        try:
            await post
        except EngineError as error:
            if str(error) != str(self._last_error):
                _log.warning("%s", error)
            self._last_error = error
            return False
        self._last_error = None
        self._last_post_at = time.monotonic()
        return True

    async def _load_rows(self, command: outbox.LoadRows) -> None:
        rows = await asyncio.wrap_future(self._store.page(command.after_id, command.limit))
        self._outbox.page(rows, time.monotonic())

    def _facts(self) -> Facts:
        settings, model = self._runtime.settings, self._model
        self._was_ready |= self._is_ready()
        return Facts(
            worker_id=settings.worker.id,
            version=settings.engine.version,
            url=settings.worker.public_url,
            error_msg=self._faults.text,
            load_time_s=model.load_time_s if self._is_ready() else 0.0,
            generation=model.generation,
            # before the first readiness a figure would say that there is one already
            max_perf=model.max_perf if self._was_ready else 0.0,
            disk_gb=shutil.disk_usage("/").used / _GB,
        )

    def _is_ready(self) -> bool:
        """Requests can be answered: the model server is ready and signatures can be checked."""
        return self._model.ready and (bool(self._keyring.pem) or not self._wants_key)

    # ------------------------------------------------------------------ the engine's key

    async def _fetch_key(self, address: str) -> None:
        try:
            pem = await self._engine.fetch_key(address)
        except EngineError as error:
            now = time.monotonic()
            self._keyring.failed(now)
            if not self._keyring.pem and now - self._started_at > KEY_PATIENCE_S:
                _log.warning("no public key yet: %s", error)
                if self._faults.set("engine-key", str(error)):
                    self._outbox.changed()
            return
        if self._keyring.fetched(pem, time.monotonic()):
            self._faults.clear("engine-key")
            self._outbox.changed()
            key_file.write(self._runtime.address(EVENTS_SOCKET), pem)
            for peer in self._server.peers:
                self._server.send(peer, PublicKey(pem))

    # ------------------------------------------------------------------ pages and upkeep

    def _housekeep(self) -> None:
        now = time.monotonic()
        for applied in self._load.tick(now, time.time() - now):
            self._applied(applied)
        self._outbox.store_ok = not self._store.behind
        if self._store.wants_state:
            state = self._load.state(self._outbox.rows, self._outbox.delivered_through_id)
            self._store.rewrite(state)

    def _view(self) -> View:
        down = [note.name for note in self._children.values() if note.state not in _LIVE]
        stop = self._children.get("worker")  # there is word of it only when all of it stops
        ready = self._is_ready() and stop is None
        reason = f"the worker is stopping: {stop.reason}" if stop else self._waits_for
        reason = reason or self._faults.current or "not ready yet"
        totals = self._load.totals
        return View(
            live=not down,
            ready=ready,
            reason="" if ready and not down else reason,
            details={
                "load": pending(totals),
                "requests": totals.requests,
                "waiting": self._queue.waiting,
                "running": self._queue.running,
                "sessions": self._queue.sessions,
                "max_perf": self._model.max_perf,
                "reported_ready": self._told_ready,
            },
        )

    def _render(self) -> bytes:
        status, requests = self._outbox.status, self._outbox.requests
        restarts = {note.name: note.restarts for note in self._children.values()}
        restarts["model"] = self._model_state.restarts
        return self._metrics.render(
            Gauges(
                totals=self._load.totals,
                working=len(self._load.working),
                queue=self._queue,
                refused=self._load.refused,
                restarts=restarts,
                model_ready=self._model.ready,
                max_perf=self._model.max_perf,
                status_posted=status.posted,
                status_failed=status.failed,
                requests_posted=requests.posted,
                requests_failed=requests.failed,
                rows_waiting=self._outbox.waiting,
                rows_dropped=self._outbox.dropped + self._store.dropped_rows,
                drift=self._load.drift,
                gaps=self._load.gaps,
                store_failures=self._store.failures,
            )
        )
