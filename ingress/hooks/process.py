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
from ingress.hooks.config import ConfigurationError
from ingress.hooks.describe import describe, fingerprint, ignored
from ingress.hooks.handlers import Hooked
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
from supervisor.settings_sources import fields, inherited_environment

#: The loop of the file has not turned for this long while requests wait for it.
STUCK_S = 60.0
#: Seconds of a drain that are the file's, once its requests have ended.
FILE_ENDS_S = 5.0
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
        self._variables = _platform_variables()
        self._hooked: dict[str, Hooked] = {}
        self._values = b""
        self._lifecycle: LifecycleState | None = None
        self._failure: ScriptFailed | None = None
        self._fingerprint = ""
        self._server: wire.Server | None = None
        self._main_id = threading.main_thread().ident
        self._main_ended = asyncio.Event()
        self._over = threading.Event()  # its Worker has ended, or the file has failed
        self._hosted: Hosted | None = None
        self._hosted_idle = asyncio.Event()
        #: of the file's loop
        self._stopped: asyncio.Event | None = None
        self._user_loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None  # the one that is in ``serve``
        self._backend: Backend | None = None
        self._sessions: dict[str, SessionSeen] = {}
        self._showing = False
        self._pinged_at = 0.0
        self._told_blocked = False
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
            gauges={
                "waiting": self._threads.waiting,
                "malformed": 0 if self._server is None else self._server.malformed,
            },
        )

    def on_control(self, message: Any) -> None:
        """Nothing that the supervisor says to others concerns hooks."""

    def reload(self, settings: Settings) -> None:
        """The file says what it is once, at its start."""

    async def drain(self, deadline_s: float) -> None:
        """Finish what runs, then let the file end: what stands behind its ``run``, and in its
        lifecycle, may stop what it has started.
        """
        end = self._loop.time() + deadline_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end - min(FILE_ENDS_S, deadline_s / 2)):
                while True:
                    self._hosted_idle.clear()
                    if self._hosted is None or not self._hosted.active:
                        break
                    await self._hosted_idle.wait()
        self._stop_file()
        async with asyncio.timeout_at(end):
            await self._main_ended.wait()

    async def stop(self) -> None:
        """Close everything."""
        self._threads.close()
        if self._server is not None:
            self._server.close()

    def _say(self) -> None:
        """What the supervisor has to know, with every beat: what was said may have been lost."""
        pid = os.getpid()
        if self._failure is not None:
            self._runtime.tell(self._failure)
        if self._values:
            self._runtime.tell(Configured(self._values, pid))
        if self._lifecycle is not None:
            self._runtime.tell(LifecycleState(self._lifecycle.error, pid))

    def _whereabouts(self) -> str:
        frame = sys._current_frames().get(self._main_id or 0)
        return whereabouts(frame, self._script)

    def _watch(self) -> None:
        """Is the file still at its start; is its loop still turning?"""
        self._inbox.tidy()
        if self._server is None:
            spent_s = self._loop.time() - self._began_at
            if spent_s > self._settings.start_timeout_s and self._failure is None:
                text = f"{self._whereabouts()}: it has not run its Worker"
                self.fail(f"{text} within {self._settings.start_timeout_s:g} s")
            return
        for thread in self._threads.late(self._settings.timeout_s):
            place = whereabouts(sys._current_frames().get(thread), self._script)
            text = "%s: it has run for %g s (hooks.timeout_s), and its request was given up"
            _log.error(text, place, self._settings.timeout_s)
        if self._threads.stuck(STUCK_S):
            self.fail("every thread is in a function of worker.py that does not return")
        elif not self._entered:
            return  # a lifecycle may block its loop for as long as a model takes to load
        elif self._user_loop is not None and self._pinged_at == 0.0:
            self._pinged_at = time.monotonic()
            with suppress(RuntimeError):  # closed: the file is ending
                self._user_loop.call_soon_threadsafe(self._pong)
        elif self._pinged_at and time.monotonic() - self._pinged_at > STUCK_S:
            text = f"{self._whereabouts()}: the loop of worker.py has been blocked for 60 s"
            if self._hosted is None or not self._hosted.active:
                self.fail(text)
            elif not self._told_blocked:  # by a request, which may take what it takes
                self._told_blocked = True
                _log.warning("%s, and no other request gets on meanwhile", text)

    def _pong(self) -> None:
        self._pinged_at, self._told_blocked = 0.0, False

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
        self._heed_variables(values)
        for name in ignored(options):
            _log.warning("%s: run(%s=…) means nothing here", self._script, name)
        self._fingerprint = fingerprint(
            worker.config, worker.hooked, inherited_environment(secret_variables=False)
        )
        if values["benchmark"] and (known := benchmark_file.remembered(self._fingerprint)):
            values["benchmark"]["max_perf"] = known
        self._backend = worker.backend
        self._user_loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._stopped = asyncio.Event()
        server = Hosted(
            worker.hooked,
            values["model"]["url"],
            redeem=self._inbox.redeem,
            timeout_s=self._settings.timeout_s,
            idle_s=settings.model.idle_timeout_s,
            limits=settings.limits,
            on_idle=self._on_hosted_idle,
        )
        self._hosted = server
        if any(each.hosted for each in worker.hooked.values()):
            with suppress(FileNotFoundError):
                os.unlink(hosted)
            await server.start(hosted)
        try:
            plain = msgspec.msgpack.encode(values)
            self._loop.call_soon_threadsafe(self._configured, dict(worker.hooked), plain)
            await self._live(worker)
        finally:
            self._over.set()
            await server.close()

    def _heed_variables(self, values: dict[str, Any]) -> None:
        """What the file has put into its environment: the public PyWorker reads it there."""
        now, before = _platform_variables(), self._variables
        changed = [name for name, value in now.items() if before.get(name) != value]
        if "UNSECURED" in changed:
            changed.remove("UNSECURED")
            if now["UNSECURED"].lower() in ("true", "1", "yes", "y", "on", "t"):
                values["auth"] = {"mode": "none"}
        if changed:
            text = "%s: %s, which it sets, means nothing to the worker: set it before the start"
            _log.warning(text, self._script, ", ".join(changed))

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

    @property
    def over(self) -> bool:
        """Its Worker has ended, or the file has failed: nothing more is to come of it."""
        return self._over.is_set()

    def wait_over(self, patience_s: float) -> None:
        """Wait for that, for a while."""
        self._over.wait(patience_s)

    def _on_hosted_idle(self) -> None:
        self._loop.call_soon_threadsafe(self._hosted_idle.set)

    def ended(self, failure: str, permanent: bool) -> None:
        """The file has run to its end; ``failure`` says why, where it should not have, and
        ``permanent`` that it would again.
        """
        if not failure and not self._hooked:
            failure = f"{self._script}: it ended without Worker(config).run()"
            permanent = True
        if failure and self._stopped is not None and self._stopped.is_set():
            _log.warning("%s", failure)
            failure = ""
        if failure:
            self._over.set()
            self._loop.call_soon_threadsafe(self.fail, failure, permanent)
        else:
            self._loop.call_soon_threadsafe(self._on_end)

    # ------------------------------------------------------------------ on our own loop

    def fail(self, text: str, permanent: bool = False) -> None:
        """The supervisor is told until it acts."""
        if self._failure is None:
            _log.error("%s", text)
            self._failure = ScriptFailed(self._runtime.mask(text), os.getpid(), permanent)
        self._runtime.beat_now()

    def _on_end(self) -> None:
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
            if not self._entered and self._task is not None:
                loop.call_soon_threadsafe(self._task.cancel)  # its lifecycle loads a model yet

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


def _platform_variables() -> dict[str, str]:
    environ = inherited_environment(secret_variables=False)
    known = {"UNSECURED", "PUBLIC_IPADDR", *(each.variable for each in fields())}
    return {name: environ[name] for name in sorted(known & environ.keys())}
