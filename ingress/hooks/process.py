"""The hands of the hook host: answers questions about requests, and lets the worker.py run.

Two threads. The file runs in the main one, as people's code expects: it keeps it from ``run`` to
the end of the worker, with the loop that their coroutines live on. The service runs in the other,
with a loop of our own, so that heartbeats and answers do not wait for whatever the file does.
Plain functions are called in threads of their own (``threads.py``).

It knows no secret of the worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec

from backend_adapter.hook_messages import (
    HOOKS_SOCKET,
    HOSTED_SOCKET,
    AboutSessions,
    Forget,
    Measured,
    Prepared,
    Refused,
    Sample,
    SessionGone,
    SessionsAnew,
    SessionSeen,
    ToHooks,
)
from ingress.hooks import benchmark_file
from ingress.hooks.describe import describe, fingerprint, ignored, webhook_port
from ingress.hooks.handlers import ConfigurationError, Hooked
from ingress.hooks.hosted import Hosted
from ingress.hooks.inbox import Inbox
from ingress.hooks.load import whereabouts
from ingress.hooks.threads import HookThreads
from ingress.hooks.worker import Backend, Worker
from supervisor import wire
from supervisor.child import Runtime
from supervisor.exit_codes import ExitCode
from supervisor.messages import Beat, Configured, LifecycleState, ScriptFailed
from supervisor.settings import Settings
from supervisor.settings_sources import inherited_environment

#: The loop of the file has not turned for this long while requests wait for it.
STUCK_S = 60.0
_log = logging.getLogger("hooks")


class HookHost:
    """The service; and, for the file's ``Worker``, the host that takes its configuration."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = runtime.loop
        self._settings = runtime.settings.hooks
        self._script = self._settings.file
        self._began_at = runtime.loop.time()
        self._threads = HookThreads(runtime.loop)
        limits = runtime.settings.limits
        self._inbox = Inbox(
            self._threads,
            self._answer,
            timeout_s=self._settings.timeout_s,
            held_bytes=limits.buffered_bytes,
            body_bytes=limits.body_bytes,
        )
        self._hooked: dict[str, Hooked] = {}
        self._values = b""
        self._lifecycle: LifecycleState | None = None
        self._failure = ""
        self._fingerprint = ""
        self._server: wire.Server | None = None
        self._main_id = threading.main_thread().ident
        self._main_ended = asyncio.Event()
        #: of the file's loop
        self._stopped: asyncio.Event | None = None
        self._user_loop: asyncio.AbstractEventLoop | None = None
        self._backend: Backend | None = None
        self._sessions: dict[str, SessionSeen] = {}
        self._showing = False
        self._pinged_at = 0.0
        self._entered = False  #: its lifecycle, if it has one

    # ------------------------------------------------------------------ the runtime's side

    async def start(self) -> None:
        """Watch the file while it starts."""
        self._runtime.every(0.25, self._watch)

    def beat(self) -> Beat:
        """Ready means: the file has run its Worker, and questions can be asked."""
        self._say()
        ready = self._server is not None
        return Beat(
            pid=os.getpid(),
            ready=ready,
            detail="" if ready else f"running {self._whereabouts()}",
            gauges={"waiting": self._threads.waiting},
        )

    def on_control(self, message: Any) -> None:
        """Nothing that the supervisor says to others concerns hooks."""

    def reload(self, settings: Settings) -> None:
        """The file says what it is once, at its start."""

    async def drain(self, deadline_s: float) -> None:
        """Let the file end: what stands behind its ``run`` may stop what it has started."""
        self._stop_file()
        async with asyncio.timeout(deadline_s):
            await self._main_ended.wait()

    async def stop(self) -> None:
        """Close everything."""
        self._threads.close()
        if self._server is not None:
            self._server.close()

    def _say(self) -> None:
        """What the supervisor has to know, with every beat: what was said may have been lost."""
        pid = os.getpid()
        if self._failure:
            self._runtime.tell(ScriptFailed(self._failure, pid))
        if self._values:
            self._runtime.tell(Configured(self._values, pid))
        if self._lifecycle is not None:
            self._runtime.tell(LifecycleState(self._lifecycle.error, pid))

    def _whereabouts(self) -> str:
        frame = sys._current_frames().get(self._main_id or 0)
        return whereabouts(frame, self._script)

    def _watch(self) -> None:
        """Is the file still at its start; is its loop still turning?"""
        if self._server is None:
            spent_s = self._loop.time() - self._began_at
            if spent_s > self._settings.start_timeout_s and not self._failure:
                text = f"{self._whereabouts()}: it has not run its Worker"
                self.fail(f"{text} within {self._settings.start_timeout_s:g} s")
            return
        if self._threads.stuck(STUCK_S):
            self.fail("every thread is in a function of worker.py that does not return")
        elif not self._entered:
            return  # a lifecycle may block its loop for as long as a model takes to load
        elif self._user_loop is not None and self._pinged_at == 0.0:
            self._pinged_at = time.monotonic()
            with suppress(RuntimeError):  # closed: the file is ending
                self._user_loop.call_soon_threadsafe(self._pong)
        elif self._pinged_at and time.monotonic() - self._pinged_at > STUCK_S:
            self.fail(f"{self._whereabouts()}: the loop of worker.py has been blocked for 60 s")

    def _pong(self) -> None:
        self._pinged_at = 0.0

    # ------------------------------------------------------------------ from the main thread

    async def serve(self, worker: Worker, options: dict[str, Any]) -> None:
        """Take the file's configuration, and keep its thread until the worker ends.

        Raises:
            ConfigurationError: it cannot work.
        """
        if self._hooked:
            raise ConfigurationError("this file runs a Worker already; one file runs one")
        settings = self._runtime.settings
        hosted = self._runtime.address(HOSTED_SOCKET).removeprefix("ipc://")
        values = describe(worker.config, worker.hooked, options, f"unix://{hosted}")
        if not settings.worker.http_port and (port := webhook_port(settings, values)):
            values["worker"]["http_port"] = port
        for name in ignored(options):
            _log.warning("%s: run(%s=…) means nothing here", self._script, name)
        self._fingerprint = fingerprint(
            worker.config, worker.hooked, inherited_environment(secret_variables=False)
        )
        if values["benchmark"] and (known := benchmark_file.remembered(self._fingerprint)):
            values["benchmark"]["max_perf"] = known
        self._backend = worker.backend
        self._user_loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = Hosted(
            worker.hooked,
            values["model"]["url"],
            redeem=self._inbox.redeem,
            timeout_s=self._settings.timeout_s,
            idle_s=settings.model.idle_timeout_s,
            limits=settings.limits,
        )
        if any(each.hosted for each in worker.hooked.values()):
            with suppress(FileNotFoundError):
                os.unlink(hosted)
            await server.start(hosted)
        try:
            plain = msgspec.msgpack.encode(values)
            self._loop.call_soon_threadsafe(self._configured, dict(worker.hooked), plain)
            await self._live(worker)
        finally:
            await server.close()

    async def _live(self, worker: Worker) -> None:
        assert self._stopped is not None
        made: Any = worker.config.lifecycle
        if made is None:
            self._entered = True
            await self._stopped.wait()
            return
        context = made() if not hasattr(made, "__aenter__") else made
        try:
            async with context:
                self._loop.call_soon_threadsafe(self._lived, LifecycleState())
                await self._stopped.wait()
        except Exception as error:  # whatever user code raises
            if self._stopped.is_set():
                raise
            text = f"the lifecycle of worker.py failed: {type(error).__name__}: {error}"
            _log.error("%s", text, exc_info=error)
            self._loop.call_soon_threadsafe(self._lived, LifecycleState(text))
            await self._stopped.wait()

    def ended(self, failure: str) -> None:
        """The file has run to its end; ``failure`` says why, where it should not have."""
        if not failure and not self._hooked:
            failure = f"{self._script}: it ended without Worker(config).run()"
        if failure and self._stopped is not None and self._stopped.is_set():
            _log.warning("%s", failure)
            failure = ""
        self._loop.call_soon_threadsafe(self.fail if failure else self._on_end, failure)

    # ------------------------------------------------------------------ on our own loop

    def fail(self, text: str) -> None:
        """The supervisor is told until it acts."""
        if not self._failure:
            _log.error("%s", text)
            self._failure = self._runtime.mask(text)
        self._runtime.beat_now()

    def _on_end(self, _: str) -> None:
        self._main_ended.set()
        if self._runtime.draining:
            return
        self.fail(f"{self._script}: Worker.run() has returned, and the file has ended")

    def _configured(self, hooked: dict[str, Hooked], values: bytes) -> None:
        self._hooked, self._values = hooked, values
        size = self._runtime.settings.limits.body_bytes + 2**20
        self._server = wire.Server(
            self._runtime.address(HOOKS_SOCKET), ToHooks, self._on_messages,
            on_down=self._inbox.forget_peer, max_message_bytes=size,
        )  # fmt: skip
        self._runtime.beat_now()

    def _lived(self, state: LifecycleState) -> None:
        self._lifecycle = state
        self._entered = True
        self._runtime.beat_now()

    def _stop_file(self) -> None:
        loop, stopped = self._user_loop, self._stopped
        if loop is None or stopped is None:
            os._exit(ExitCode.CLEAN)  # it is still at its start
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stopped.set)

    # ------------------------------------------------------------------ questions

    def _on_messages(self, peer: str, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, AboutSessions):
                self._see(message)
                continue
            if isinstance(message, Measured):
                benchmark_file.remember(message.max_perf, self._fingerprint)
            elif isinstance(message, Forget):
                self._inbox.forget(peer, message.id)
            elif isinstance(message, Sample) and (
                known := benchmark_file.remembered(self._fingerprint)
            ):  # it may have been written since the file has run
                self._answer(peer, Prepared(message.id, 0.0, known=known))
            else:
                self._inbox.ask(peer, self._hooked.get(message.route), message)

    def _see(self, told: AboutSessions) -> None:
        """Sessions changed: the file's loop, where most of its code looks, is shown all of them."""
        if isinstance(told, SessionsAnew):
            self._sessions.clear()
        elif isinstance(told, SessionGone):
            self._sessions.pop(told.session_id, None)
        else:
            self._sessions[told.session_id] = told
        if not self._showing and self._user_loop is not None:
            self._showing = True  # once, however long that loop is blocked
            with suppress(RuntimeError):  # closed: the file is ending
                self._user_loop.call_soon_threadsafe(self._show)

    def _show(self) -> None:
        """Called on the file's loop. A dict is copied in one step."""
        self._showing = False
        if self._backend is not None:
            self._backend.see(dict(self._sessions))

    def _answer(self, peer: str, answer: Prepared | Refused) -> None:
        if self._server is not None:
            self._server.send(peer, answer)
