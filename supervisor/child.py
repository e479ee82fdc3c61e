"""What every process of ours runs in: uvloop, heartbeats, signals, drain, parent-death, logging.

A child is started by the supervisor, reads its settings from the hand-off file, and runs one
``Service``. Its heartbeat is sent by the loop itself, never by a thread: a loop that is stuck must
look stuck. When the supervisor dies, every child sweeps the whole run (the model server and its
grandchildren included) and ends: nothing may hold the GPU without anyone to answer for it.

This module must not know what any service does.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import uvloop

import supervisor
from supervisor import file_limit, log_lines, process_tree, run_dir, settings_sources, wire
from supervisor.allocator import TRIM_EVERY_S, Trimmer, keep_some
from supervisor.exit_codes import ExitCode
from supervisor.messages import Beat, Drain, FromSupervisor, Message, Reload
from supervisor.settings import Settings
from supervisor.settings_sources import Handoff, SettingsError, read_handoff

CONTROL_SOCKET = "control"
#: Mean nothing to us, and would end a process that says nothing of them. A handler, not SIG_IGN,
#: which the programs that we start would inherit.
STRAY_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
#: Seconds within which two signals are one: a terminal, or a service manager, sends several.
SAME_SIGNAL_S = 0.5
_log = logging.getLogger("child")


class Service(Protocol):
    """What a process does inside the runtime."""

    async def start(self) -> None:
        """Open sockets and ports. Raising ends the process; the supervisor starts it again."""

    def beat(self) -> Beat:
        """This second's heartbeat."""

    def on_control(self, message: Any) -> None:
        """A message of the supervisor other than Drain and Reload."""

    def reload(self, settings: Settings) -> None:
        """New settings, already validated."""

    async def drain(self, deadline_s: float) -> None:
        """Finish what runs, start nothing new. Returns when done, or at the deadline."""

    async def stop(self) -> None:
        """Close everything."""


class Runtime:
    """The ground under one service: its name, settings, control socket and heartbeat.

    ``signals``: it runs in the main thread, and signals are its to handle.
    """

    def __init__(self, name: str, handoff: Handoff, *, signals: bool = True) -> None:
        self.name = name
        self._signals = signals
        self.handoff = handoff
        self.settings = handoff.settings
        self.mask = log_lines.masker(settings_sources.secrets(handoff.settings))
        self.loop = asyncio.get_running_loop()
        self._service: Service | None = None
        self._control: wire.Client | None = None
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._aside: set[asyncio.Task[None]] = set()
        self._finished: asyncio.Future[int] = self.loop.create_future()
        self._draining: asyncio.Task[None] | None = None
        self._drain_began = 0.0

    @property
    def draining(self) -> bool:
        """It was told to end."""
        return self._draining is not None

    def address(self, socket: str) -> str:
        """``ipc://…`` of one of this run's sockets."""
        return wire.ipc_address(self.handoff.runtime_dir, socket)

    def tell(self, message: Message) -> bool:
        """Send to the supervisor. False: it does not listen now (say it again later)."""
        return self._control is not None and self._control.send(message)

    def every(self, period_s: float, callback: Callable[[], None]) -> None:
        """Call back now and then every ``period_s`` seconds, until the process ends."""
        key = len(self._timers)

        def fire() -> None:
            self._timers[key] = self.loop.call_later(period_s, fire)
            callback()

        fire()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something slow aside. What it raises unexpectedly ends the process, like any bug."""
        task = self.loop.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside_done)
        return task

    def _aside_done(self, task: asyncio.Task[None]) -> None:
        self._aside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed("a task failed", error)

    def beat_now(self) -> None:
        """Send a heartbeat at once: readiness changed."""
        if self._service is not None:
            self.tell(self._service.beat())

    def finish(self, code: int) -> None:
        """End the process after its service stopped."""
        if not self._finished.done():
            self._finished.set_result(code)

    async def run(self, build: Callable[[Runtime], Service]) -> int:
        """Run the service until it is drained or told to end; returns the exit code."""
        self._watch_parent()
        self.loop.set_exception_handler(self._unexpected)
        if self._signals:
            self.loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
            for number in (signal.SIGINT, signal.SIGHUP, *STRAY_SIGNALS):
                self.loop.add_signal_handler(number, lambda: None)
        service = build(self)
        await service.start()
        self._service = service
        self._control = wire.Client(
            self.address(CONTROL_SOCKET), self.name, FromSupervisor, self._on_messages,
            on_up=self.beat_now,
        )  # fmt: skip
        self.every(self.settings.restart.beat_s, self.beat_now)
        gc.collect()
        gc.freeze()  # what start-up made lives as long as the process: never traverse it again
        gc.set_threshold(20_000, 50, 100)
        if self._signals:  # the process is ours alone
            keep_some(settings_sources.inherited_environment(secret_variables=False))
            self.every(TRIM_EVERY_S, Trimmer().look)
        try:
            return await self._finished
        finally:
            for timer in self._timers.values():
                timer.cancel()
            aside = list(self._aside)
            for task in aside:
                task.cancel()
            await asyncio.gather(*aside, return_exceptions=True)
            await service.stop()
            self._control.close()

    def _on_messages(self, messages: list[Any]) -> None:
        assert self._service is not None
        for message in messages:
            if isinstance(message, Drain):
                self._drain(message.deadline_s)
            elif isinstance(message, Reload):
                self._reload()
            else:
                self._service.on_control(message)

    def _reload(self) -> None:
        try:
            self.handoff = read_handoff()
        except SettingsError as error:
            _log.error("reload: %s", error)
            return
        self.settings = self.handoff.settings
        self.mask = log_lines.masker(settings_sources.secrets(self.settings))
        assert self._service is not None
        self._service.reload(self.settings)

    def _on_sigterm(self) -> None:
        if self._draining is None:
            self._drain(self.settings.worker.drain_s)
        elif self.loop.time() - self._drain_began > SAME_SIGNAL_S:
            os._exit(128 + signal.SIGTERM)  # asked twice: now

    def _drain(self, deadline_s: float) -> None:
        if self._draining is None:
            if self._service is None:
                self.finish(0)
            else:
                self._drain_began = self.loop.time()
                self._draining = self.spawn(self._drained(self._service, deadline_s))

    async def _drained(self, service: Service, deadline_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s + 1.0):
                await service.drain(deadline_s)
        self.finish(ExitCode.CLEAN)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that no code expected: this process's state can not be trusted any more."""
        error = context.get("exception")
        if isinstance(error, (ConnectionError, TimeoutError)):
            _log.debug("%s: %r", context.get("message"), error)
            return
        self._failed(context.get("message", ""), error)

    def _failed(self, what: str, error: BaseException | None) -> None:
        _log.critical("%s", what, exc_info=error)
        self.finish(ExitCode.BUG)

    def _watch_parent(self) -> None:
        pidfd = process_tree.watch_parent(self.handoff.supervisor_pid)
        if pidfd is None:
            self._orphaned()
        self.loop.add_reader(pidfd, self._orphaned)

    def _orphaned(self) -> NoReturn:
        end_run(self.handoff)
        os._exit(ExitCode.ORPHANED)


def end_run(handoff: Handoff) -> None:
    """Kill every other process of a run and remove its directory, which holds the engine's token.

    All children begin at the same moment. Two that killed each other would leave the rest alive, so
    one has its turn at a time: the first kills those who wait for theirs.
    """
    with suppress(OSError):  # no directory: somebody has done it all
        fcntl.flock(os.open(handoff.runtime_dir, os.O_RDONLY), fcntl.LOCK_EX)
    process_tree.sweep(handoff.run_id, exclude=(os.getpid(),))
    run_dir.remove(handoff.runtime_dir, handoff.settings, handoff.run_id, last=False)


def enter(name: str) -> Handoff:
    """The first thing that every child does: read what it was started with, and set up its log.

    Ends the process where that is impossible.
    """
    if getattr(supervisor, "DISTRIBUTION", "") != "lighterman":  # pragma: no cover
        sys.exit(f"{supervisor.__file__} is another distribution's package: use a venv of its own")
    try:
        handoff = read_handoff()
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(ExitCode.SETTINGS)
    file_limit.raise_limit()
    settings = handoff.settings.worker
    mask = log_lines.masker(settings_sources.secrets(handoff.settings))
    log_lines.configure(name, settings.log_format, settings.log_level, mask)
    return handoff


def run(name: str, build: Callable[[Runtime], Service]) -> NoReturn:
    """Entry of a child: ``python -m <package> <name>``. Ends the process."""
    handoff = enter(name)

    async def main() -> int:
        return await Runtime(name, handoff).run(build)

    try:
        code = uvloop.run(main())
    except Exception:
        logging.getLogger("child").critical("cannot go on", exc_info=True)
        code = ExitCode.BUG
    sys.stderr.flush()
    os._exit(code)
