"""Starts the worker and stays until it has stopped: the command without a name.

In this order, so that each failure is told before anything runs: the settings (78), the run lock
(75), the ports that we were told to bind (76, or 78 where no program could). Everything that is
said goes through ``Console``, which never blocks.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from supervisor import core_files, log_lines, process_tree, run_dir, settings_sources, spool_dir
from supervisor.beacon import Beacon
from supervisor.client_port import ClientPort, unbindable
from supervisor.console import Console
from supervisor.exit_codes import ExitCode
from supervisor.logs import Kept
from supervisor.plan import Plan
from supervisor.ports import is_free
from supervisor.process import Supervisor
from supervisor.run_lock import AlreadyRunning, RunLock, RunLockError
from supervisor.screen import Both, Plain, Screen, Terminal
from supervisor.settings_sources import Fault, SettingsError
from supervisor.source import Source
from supervisor.timeline import Timeline

#: Seconds that the ports of a worker that was killed may take to become free.
PORT_PATIENCE_S = 3.0
_PORT_POLL_S = 0.05
#: Where a log line for people says how severe it is (``log_lines.Lines``).
_LEVEL = slice(25, 32)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UNSEEN = ("info   ", "debug  ")


def start(source: Source, color: bool) -> int:
    """Run the worker; returns the exit code.

    Raises:
        UsageError: the file is none that can be run.
    """
    core_files.forbid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the run knows what to do with it
    # what was found here stays the one that is meant, whatever lies here later
    file = source.script or (str(source.path) if source.path else None)
    try:
        plan = source.plan()
    except SettingsError as error:
        return _refuse(error.faults, ExitCode.SETTINGS, source)
    lock = RunLock(plan.settings.worker.state_dir)
    try:
        lock.acquire()
    except AlreadyRunning as error:
        print(error, file=sys.stderr)
        return ExitCode.ALREADY_RUNNING
    except RunLockError as error:
        return _refuse([Fault("worker.state_dir", str(error))], ExitCode.SETTINGS, source)
    try:
        _sweep(lock.left_behind, plan)
        lock.swept()
        try:
            port = _take_ports(plan)
        except _NoPort as error:
            return _refuse([error.fault], error.code, source)
        return _run(plan, lock, port, Source(file, source.flags), color)
    finally:
        lock.release()


def _sweep(left: dict[str, Any], plan: Plan) -> None:
    """Of a run that died whole, with everyone who could have swept it, nothing may stay."""
    run_id, runtime_dir = left.get("run_id"), left.get("runtime_dir")
    if not isinstance(run_id, str) or not run_id.replace("-", "").isalnum():
        return spool_dir.remove_own(plan.settings)
    process_tree.sweep(run_id)
    if isinstance(runtime_dir, str) and Path(runtime_dir).name.startswith(run_dir.PREFIX):
        run_dir.remove(runtime_dir, plan.settings, run_id)
    spool_dir.remove_own(plan.settings)


def _refuse(faults: Sequence[Fault], code: ExitCode, source: Source) -> int:
    """Say why the worker does not start, to the person and to the engine; returns the exit code."""
    print(*faults, sep="\n", file=sys.stderr, flush=True)
    environ = settings_sources.inherited_environment(secret_variables=True)
    Beacon(faults, source.path, environ, source.flags).shine()
    return code


class _NoPort(Exception):
    """A port that cannot be had, and the exit code."""

    def __init__(self, code: ExitCode, fault: Fault) -> None:
        self.code, self.fault = code, fault


def _take_ports(plan: Plan) -> ClientPort | None:
    """The client port, where one process serves it; nobody holds the others. Raises _NoPort."""
    worker, end = plan.settings.worker, time.monotonic() + PORT_PATIENCE_S
    wanted = [(worker.admin_host, worker.admin_port, "worker.admin_port")]
    if worker.processes > 1:
        wanted.append((worker.host, worker.port, "worker.port"))
    if plan.local_engine_port:
        wanted.append(("127.0.0.1", plan.local_engine_port, "engine.local_port"))
    for host, number, name in wanted:
        while not is_free(host, number):
            _wait_for(number, name, end)
    if worker.processes > 1:
        return None
    while True:
        try:
            return ClientPort(worker.host, worker.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                fault = unbindable(worker.host, worker.port, error)
                raise _NoPort(ExitCode.SETTINGS, fault) from None
        _wait_for(worker.port, "worker.port", end)


def _wait_for(port: int, name: str, end: float) -> None:
    if time.monotonic() >= end:
        holder = process_tree.port_holder(port) or "another program"
        hint = f"stop it, or choose another port: --set {name}=N, 0 picks a free one"
        raise _NoPort(ExitCode.PORT_TAKEN, Fault(name, f"port {port} is held by {holder}", hint))
    time.sleep(_PORT_POLL_S)


def _run(plan: Plan, lock: RunLock, port: ClientPort | None, source: Source, color: bool) -> int:
    worker = plan.settings.worker
    console = Console()
    mask = log_lines.masker(settings_sources.secrets(plan.settings))
    log_lines.configure("supervisor", worker.log_format, worker.log_level, mask)
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    kept = Kept(os.path.join(worker.state_dir, "logs", "supervisor.log"))
    into_file = logging.StreamHandler(kept)
    into_file.setFormatter(handler.formatter)
    logging.getLogger().addHandler(into_file)
    terminal = sys.stderr.isatty() and worker.log_format == "text"
    screen: Screen = Plain()
    stream: Console | Terminal = console
    if terminal:
        width = shutil.get_terminal_size().columns
        stream = Terminal(console.write, width, color)
        shown = logging.getLogger("supervisor.shown")  # once there, and not as a log line again
        shown.propagate, shown.handlers = False, [into_file]
        screen = Both(stream, Plain(shown))
    # On a terminal the timeline says it all; the files hold every line, our own, too.
    quiet = terminal and worker.log_level == "info"
    handler.setStream(stream)
    if quiet:
        handler.addFilter(_matters)

    def echo(line: str) -> None:
        if not (quiet and line[_LEVEL] in _UNSEEN):
            stream.write(line)

    timeline = Timeline(screen)

    async def main() -> int:
        reread = partial(source.plan_again, plan)
        supervisor = Supervisor(plan, lock, port, echo, timeline, reread, kept)
        try:
            return await supervisor.run()
        finally:  # it has ended: no late signal may make the exit code another one
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    began = time.monotonic()
    try:
        code = uvloop.run(main())
        screen.say(f" ■ stopped after {time.monotonic() - began:.0f} s: {_why(code)}")
    except Exception:
        logging.getLogger("supervisor").critical("cannot go on", exc_info=True)
        code = ExitCode.BUG
    finally:
        timeline.close()
        console.close()
        kept.close()
    return code


def _matters(record: logging.LogRecord) -> bool:
    """It is shown beside the timeline: trouble, and what ``model.info_log`` asks for."""
    return record.levelno >= logging.WARNING or record.name == "supervisor.model"


def _why(code: int) -> str:
    reasons = {int(known): known.doc for known in ExitCode}
    return f"exit {int(code)}, {reasons[code]}"
