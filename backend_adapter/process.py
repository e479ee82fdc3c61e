"""The hands of the adapter: jobs in, answers out, and the model server in between.

What runs next is ``queue.py``'s decision, whether anything may run ``readiness.py``'s; how one
response travels is ``run.py``'s. Here events are fed in and commands carried out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from backend_adapter import jobs
from backend_adapter.capacity import Capacity
from backend_adapter.jobs import Job, Key
from backend_adapter.messages import (
    Cancel,
    Credit,
    Failed,
    FromAdapter,
    Rejected,
    SessionCall,
    Submit,
    ToAdapter,
)
from backend_adapter.model_client import ModelClient
from backend_adapter.model_watch import ModelWatch
from backend_adapter.queue import Queue
from backend_adapter.run import Run
from backend_adapter.script_link import ScriptLink
from backend_adapter.session_desk import SWEEP_EVERY_S, SessionDesk
from backend_adapter.session_files import SessionFiles
from reporter.messages import QueueReport
from reporter.producer import EVENTS_EVERY_S, LAST_ACCOUNTS_S, Producer
from supervisor import file_limit, wire
from supervisor.child import Runtime
from supervisor.messages import Beat, ChildNote, LogMatch, ModelState
from supervisor.settings import Settings

JOBS_SOCKET = "jobs"
EVENTS_SOCKET = "events"
#: Directory of the run that sessions are kept in.
SESSIONS = "sessions"
#: Deadlines of jobs are looked at this often.
EXPIRE_EVERY_S = 0.1
GAUGES_EVERY_S = 1.0
_log = logging.getLogger("backend_adapter")


class Adapter:
    """The service that ``child.run`` runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        settings = runtime.settings
        model = settings.model
        self._queue = Queue(
            max_jobs=settings.queue.max_jobs,
            max_bytes=settings.queue.max_bytes,
            max_running=file_limit.connections(model.max_connections),
            max_attempts=settings.queue.max_attempts,
        )
        self._client = self._client_of(model.url)
        self._script = ScriptLink(runtime, self._client_of, self)
        #: connections to functions of a worker.py that answer in the model server's place
        self._hosted = self._script.hosted
        self._capacity = Capacity(settings.benchmark.max_perf)
        self._told_perf = 0.0
        self._watch = ModelWatch(
            runtime, self._client, self._capacity, self,
            samples=self._script.samples, hosted=self._hosted,
        )  # fmt: skip
        self._runs: dict[Key, Run] = {}
        self._gauges: QueueReport | None = None
        self._draining = False
        self._emptied = asyncio.Event()
        self._no_successor = asyncio.Event()  # the whole worker stops
        self._jobs: wire.Server
        self._accounts = Producer(
            runtime.address(EVENTS_SOCKET), runtime.name, on_up=self.standing_changed
        )
        self._desk = SessionDesk(
            settings.limits.sessions, self._client, self._accounts.ledger,
            SessionFiles(os.path.join(runtime.handoff.runtime_dir, SESSIONS)),
            self._script.mirror, send=self._answer, revoke=self._revoke,
        )  # fmt: skip

    def _client_of(self, url: str) -> ModelClient:
        model = self._runtime.settings.model
        return ModelClient(
            url,
            self._runtime.loop,
            connect_timeout_s=model.connect_timeout_s,
            first_byte_timeout_s=model.first_byte_timeout_s,
            idle_timeout_s=model.idle_timeout_s,
        )

    # ------------------------------------------------------------------ the runtime's side

    async def start(self) -> None:
        """Bind the jobs socket, connect to the reporter."""
        runtime = self._runtime
        self._jobs = wire.Server(
            runtime.address(JOBS_SOCKET), ToAdapter, self._on_messages,
            on_down=self._on_ingress_down,
            max_message_bytes=runtime.settings.limits.body_bytes + 2**20,
        )  # fmt: skip
        self._desk.restore()
        self._accounts.start()
        self._script.start()
        self.capacity_changed()
        runtime.every(EXPIRE_EVERY_S, self._expire)
        runtime.every(GAUGES_EVERY_S, self._tell_gauges)
        runtime.every(EVENTS_EVERY_S, self._accounts.flush)
        runtime.every(SWEEP_EVERY_S, self._desk.sweep)

    def beat(self) -> Beat:
        """Ready means: jobs can be taken. The verdict on the model server goes with every beat."""
        queue, verdict = self._queue, self._watch.verdict
        if verdict is not None:
            self._runtime.tell(verdict)
        return Beat(
            pid=os.getpid(),
            ready=True,
            gauges={
                "waiting": queue.waiting,
                "running": queue.running,
                "held_bytes": queue.held_bytes,
                "retried": queue.retried,
                "max_perf": round(self._capacity.max_perf, 3),
                "model_ready": verdict is not None and verdict.ready,
                "model_reason": "" if verdict is None else verdict.reason,
                "model_awaits": self._watch.awaits,
                "connections_opened": self._client.opened,
                "connections_reused": self._client.reused,
                "sessions": self._desk.open,
                "malformed": self._jobs.malformed + self._accounts.malformed,
            },
        )

    def on_control(self, message: Any) -> None:
        """Where the model server's process stands, and what its log said."""
        if isinstance(message, ModelState):
            self._watch.on_model_state(message)
        elif isinstance(message, LogMatch):
            self._watch.on_log_match(message)
        elif isinstance(message, ChildNote) and message.name == "worker":
            self._no_successor.set()
        elif isinstance(message, ChildNote) and message.name == "hooks":
            self._script.told(message)

    def reload(self, settings: Settings) -> None:
        """Lanes and limits come with each job; a worker.py that was restarted may have moved its
        model server. The rest needs a restart.
        """
        if self._client.move(settings.model.url):
            self._watch.on_lost()

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new; return when nothing runs or waits."""
        end = self._runtime.loop.time() + deadline_s
        self._draining = True
        self._queue.drain()
        self._check_empty()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._desk.drain(self._no_successor)
                await self._emptied.wait()
        await self._accounts.settle(end + LAST_ACCOUNTS_S)

    async def stop(self) -> None:
        """Close everything."""
        self._watch.stop()
        self._desk.stop()
        self.backend_down("the worker is stopping")  # what ends now is not sent again
        await self._client.close()
        await self._script.close()
        self._jobs.close()
        self._accounts.close()

    # ------------------------------------------------------------------ jobs

    def _on_messages(self, peer: str, messages: list[Any]) -> None:
        now = time.monotonic()
        for message in messages:
            kind = type(message)
            if kind is Submit:
                if message.session_id and not self._desk.use(message.session_id):
                    text = "its session is not open: it was closed, or has expired"
                    self._answer(peer, Rejected(message.id, "invalid_session", text))
                    continue
                self._carry_out(self._queue.submit(Job((peer, message.id), message), now))
            elif kind is Credit:
                run = self._runs.get((peer, message.id))
                if run is not None:
                    run.grant(message.size)
            elif kind is Cancel:
                key = (peer, message.id)
                self._carry_out(self._queue.cancel(key, now))
                self._forget(key)  # complete, but not delivered
                self._check_empty()
            elif kind is SessionCall:
                self._desk.on_call(peer, message)

    def _on_ingress_down(self, peer: str) -> None:
        """Its session ended: it submits again what it still wants."""
        self._carry_out(self._queue.cancel_peer(peer, time.monotonic()))
        for key in [key for key in self._runs if key[0] == peer]:
            self._forget(key)
        self._desk.caller_gone(peer)
        self._check_empty()

    def _answer(self, peer: str, message: FromAdapter) -> None:
        self._jobs.send(peer, message)

    def _revoke(self, session_id: str) -> None:
        self._carry_out(self._queue.revoke(session_id, time.monotonic()))

    def _expire(self) -> None:
        self._watch.note_progress()
        self._carry_out(self._queue.expire(time.monotonic()))

    def _carry_out(self, commands: Sequence[jobs.Command]) -> None:
        for command in commands:
            if type(command) is jobs.Dispatch:
                self._dispatch(command.job)
            elif type(command) is jobs.Abort:
                self._abort(command.job)
            elif type(command) is jobs.Reject:
                self._reject(command)
            elif type(command) is jobs.Fail:
                self._fail(command.job, command.kind, command.message)
            else:
                raise AssertionError(f"unknown command {command!r}")
        if self._draining:
            self._check_empty()

    def _dispatch(self, job: Job) -> None:
        client = self._hosted if job.submit.hosted and self._hosted else self._client
        run = Run(self, job, client)
        self._runs[job.key] = run
        self._capacity.started(job.dispatched_at)
        try:
            client.send(run.request)
        except ValueError as error:
            # told like any other broken request, but not before this dispatch has returned
            self._runtime.loop.call_soon(run.on_broken, "model_failed", str(error))

    def _abort(self, job: Job) -> None:
        run = self._runs.get(job.key)
        if run is not None:
            run.client.cancel(run.request)
            self._forget(job.key)
            self._capacity.ended(0.0, job.dispatched_at, time.monotonic())

    def _forget(self, key: Key) -> bool:
        """Let go of a run, and of its body at once. False: it was not known."""
        run = self._runs.pop(key, None)
        if run is None:
            return False
        run.release()
        return True

    def _reject(self, command: jobs.Reject) -> None:
        job = command.job
        self.tell(
            job,
            Rejected(
                job.submit.id,
                command.kind,
                command.message,
                command.retry_after_s,
                command.position,
            ),
        )

    def _fail(self, job: Job, kind: str, message: str) -> None:
        self.tell(job, Failed(job.submit.id, kind, message, job.dispatched_at))

    def _check_empty(self) -> None:
        if self._draining and not (self._queue.waiting or self._queue.running or self._runs):
            self._emptied.set()

    # ------------------------------------------------------------------ what runs tell

    def tell(self, job: Job, message: FromAdapter) -> None:
        """Send to the ingress that the job came from."""
        self._jobs.send(job.key[0], message)

    def began(self, run: Run) -> None:
        """The client is about to see the response's beginning."""
        self._queue.began(run.job.key)

    def ended(self, run: Run, status: int) -> None:
        """The model server is done with it."""
        now = time.monotonic()
        job = run.job
        # what it refused (4xx) was no work: a client may claim any workload for that
        worked = job.submit.workload if status < 400 else 0.0
        self._capacity.ended(worked, job.dispatched_at, now)
        self._carry_out(self._queue.finished(job.key, status < 500, now))

    def delivered(self, run: Run) -> None:
        """The terminal message has been sent."""
        self._forget(run.job.key)
        if self._draining:
            self._check_empty()

    def lost(self, run: Run, sent: bool, reason: str) -> None:
        """The connection broke before the response began: look at the model server at once."""
        now = time.monotonic()
        key = run.job.key
        if self._runs.get(key) is not run or not self._forget(key):
            return
        self._capacity.ended(0.0, run.job.dispatched_at, now)
        if run.client is not self._hosted or self._script.lost(sent):
            self._watch.on_lost()
        self._carry_out(self._queue.lost(key, sent, reason, now))

    def broken(self, run: Run, kind: str, message: str) -> None:
        """The response can not be completed."""
        now = time.monotonic()
        key = run.job.key
        if self._runs.get(key) is not run or not self._forget(key):
            return
        self._capacity.ended(0.0, run.job.dispatched_at, now)
        self._carry_out(self._queue.broken(key, kind, message, now))

    # ------------------------------------------------------------------ what the watch tells

    def backend_up(self) -> None:
        """Jobs may run."""
        self._carry_out(self._queue.backend_up(time.monotonic()))

    def backend_down(self, reason: str) -> None:
        """Jobs must wait."""
        self._queue.backend_down(reason)

    def backend_failed(self, reason: str) -> None:
        """Jobs need not wait."""
        self._carry_out(self._queue.backend_failed(reason, time.monotonic()))

    def hosted_up(self) -> None:
        """Jobs for the process that holds the worker.py may run."""
        self._carry_out(self._queue.hosted_up(time.monotonic()))

    def hosted_down(self) -> None:
        """They must wait."""
        self._queue.hosted_down()

    def hosted_failed(self) -> None:
        """They need not wait."""
        self._carry_out(self._queue.hosted_failed(time.monotonic()))

    def model_lost(self) -> None:
        """Look at the model server at once."""
        self._watch.on_lost()

    def measured(self, max_perf: float) -> None:
        """A benchmark has just been made; a worker.py's host remembers its figure."""
        self._script.measured(max_perf)

    def capacity_changed(self) -> None:
        """What only traffic has shown is what the model server did, not what it can do.

        It is good to be reported, and nothing to refuse requests by.
        """
        benchmark = self._runtime.settings.benchmark
        if benchmark.route or benchmark.max_perf > 0:
            self._queue.set_capacity(self._capacity.max_perf)

    def standing_changed(self) -> None:
        """Tell the reporter how the model server is."""
        self._told_perf = self._capacity.max_perf
        report = self._watch.report
        if report is not None:
            self._accounts.send(report)
        self._gauges = None

    def _tell_gauges(self) -> None:
        if self._capacity.max_perf != self._told_perf:
            self.capacity_changed()
            self.standing_changed()
        queue = self._queue
        gauges = QueueReport(
            queue.waiting,
            queue.running,
            queue.waiting_bytes,
            queue.retried,
            self._watch.benchmarked,
            self._desk.open,
        )
        if gauges != self._gauges and self._accounts.send(gauges):
            self._gauges = gauges
