"""The hands of the adapter: its sockets, its timers, and the model server behind it.

What runs next is ``queue.py``'s decision, whether anything may run ``readiness.py``'s; what becomes
of jobs and how one response travels is ``runs.py``'s and ``run.py``'s. Here events are fed in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backend_adapter.capacity import Capacity
from backend_adapter.jobs import Job
from backend_adapter.messages import FromAdapter, ToAdapter
from backend_adapter.model_client import ModelClient
from backend_adapter.model_watch import ModelWatch
from backend_adapter.queue import Queue
from backend_adapter.run import Sender
from backend_adapter.runs import Runs
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
#: Connections that probes, and what is said of sessions' ends, may have besides the jobs'.
OWN_CONNECTIONS = 40
_log = logging.getLogger("backend_adapter")


class Adapter:
    """The service that ``child.run`` runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        settings = runtime.settings
        model = settings.model
        # a connection, for a large body a second hold on it, and the file that it lies in; where
        # there are two model servers, one that the other keeps meanwhile
        each = 3 if settings.limits.spool_bytes > 0 else 2
        each += bool(settings.hooks.file)
        self._max_running = file_limit.connections(model.max_connections, each)
        self._queue = Queue(
            max_jobs=settings.queue.max_jobs,
            max_bytes=settings.queue.max_bytes,
            max_running=self._max_running,
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
        self._runs = Runs(self._queue, self._capacity, self, time.monotonic)
        self._gauges: QueueReport | None = None
        self._emptied = asyncio.Event()
        self._no_successor = asyncio.Event()  # the whole worker stops
        self._jobs: wire.Server
        self._accounts = Producer(
            runtime.address(EVENTS_SOCKET), runtime.name, on_up=self.standing_changed
        )
        self._desk = SessionDesk(
            settings.limits.sessions, self._client, self._accounts.ledger,
            SessionFiles(os.path.join(runtime.handoff.runtime_dir, SESSIONS)),
            self._script.mirror, send=self.send, revoke=self._revoke,
        )  # fmt: skip
        self._runs.desk = self._desk

    def _client_of(self, url: str) -> ModelClient:
        model = self._runtime.settings.model
        return ModelClient(
            url,
            self._runtime.loop,
            connect_timeout_s=model.connect_timeout_s,
            first_byte_timeout_s=model.first_byte_timeout_s,
            idle_timeout_s=model.idle_timeout_s,
            max_kept=self._max_running + OWN_CONNECTIONS,
        )

    # ------------------------------------------------------------------ the runtime's side

    async def start(self) -> None:
        """Bind the jobs socket, connect to the reporter."""
        runtime = self._runtime
        self._jobs = wire.Server(
            runtime.address(JOBS_SOCKET), ToAdapter, self._runs.hear,
            on_down=self._runs.peer_gone,
            max_message_bytes=runtime.settings.limits.body_bytes + 2**20,
        )  # fmt: skip
        self._desk.restore()
        self._accounts.start()
        self._script.start()
        self._watch.start()
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
                **self._watch.gauges,
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
        self._runs.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._desk.drain(self._no_successor)
                await self._emptied.wait()
        await self._accounts.settle(end + LAST_ACCOUNTS_S)

    async def stop(self) -> None:
        """Close everything."""
        self._desk.stop()
        self.backend_down("the worker is stopping")  # what ends now is not sent again
        await self._watch.stop()
        await self._client.close()
        await self._script.close()
        self._jobs.close()
        self._accounts.close()

    # ------------------------------------------------------------------ what the runs need

    def send(self, peer: str, message: FromAdapter) -> object:
        """Send to an ingress."""
        return self._jobs.send(peer, message)

    def sender(self, job: Job) -> Sender:
        """The connections that a job is sent on."""
        return self._hosted if job.submit.hosted and self._hosted else self._client

    def soon(self, callback: Callable[[str, str], None], kind: str, message: str) -> None:
        """Call back in the next round of the loop."""
        self._runtime.loop.call_soon(callback, kind, message)

    def connection_lost(self, sender: Sender, sent: bool) -> None:
        """Look at once at what was behind it."""
        if sender is not self._hosted or self._script.lost(sent):
            self._watch.on_lost()

    def emptied(self) -> None:
        """The drain is over."""
        self._emptied.set()

    def _revoke(self, session_id: str) -> None:
        self._runs.carry_out(self._queue.revoke(session_id, time.monotonic()))

    def _expire(self) -> None:
        self._watch.note_progress()
        self._runs.carry_out(self._queue.expire(time.monotonic()))

    # ------------------------------------------------------------------ what the watch tells

    def backend_up(self) -> None:
        """Jobs may run."""
        self._runs.carry_out(self._queue.backend_up(time.monotonic()))

    def backend_down(self, reason: str) -> None:
        """Jobs must wait."""
        self._queue.backend_down(reason)

    def backend_failed(self, reason: str) -> None:
        """Jobs need not wait."""
        self._runs.carry_out(self._queue.backend_failed(reason, time.monotonic()))

    def hosted_up(self) -> None:
        """Jobs for the process that holds the worker.py may run."""
        self._runs.carry_out(self._queue.hosted_up(time.monotonic()))

    def hosted_down(self) -> None:
        """They must wait."""
        self._queue.hosted_down()

    def hosted_failed(self) -> None:
        """They need not wait."""
        self._runs.carry_out(self._queue.hosted_failed(time.monotonic()))

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
            self._watch.gpus,
        )
        if gauges != self._gauges and self._accounts.send(gauges):
            self._gauges = gauges
