"""Starts the worker and stays until it has stopped: the command without a name.

In this order, so that each failure is told before anything runs: the settings (78), the run lock
(75), the ports that we were told to bind (76). Everything that is said goes through ``Console``,
which never blocks.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time

import uvloop

from supervisor import beacon, log_lines, process_tree, settings_sources
from supervisor.console import Console
from supervisor.exit_codes import ExitCode
from supervisor.plan import Plan
from supervisor.ports import is_free
from supervisor.process import Supervisor
from supervisor.run_lock import AlreadyRunning, RunLock, RunLockError
from supervisor.screen import Plain, Screen, Terminal
from supervisor.settings_sources import SettingsError
from supervisor.source import Source
from supervisor.timeline import Timeline

#: Seconds that the ports of a worker that was killed may take to become free.
PORT_PATIENCE_S = 3.0
_PORT_POLL_S = 0.05
#: Where a log line for people says how severe it is (``log_lines.Lines``).
_LEVEL = slice(25, 32)
_UNSEEN = ("info   ", "debug  ")


def start(source: Source, color: bool) -> int:
    """Run the worker; returns the exit code.

    Raises:
        UsageError: the file is none that can be run.
    """
    path = source.path
    try:
        plan = source.plan()
    except SettingsError as error:
        return _refuse_settings(error, source)
    lock = RunLock(plan.settings.worker.state_dir)
    try:
        lock.acquire()
    except AlreadyRunning as error:
        print(error, file=sys.stderr)
        return ExitCode.ALREADY_RUNNING
    except RunLockError as error:
        print(error, file=sys.stderr)
        return ExitCode.SETTINGS
    try:
        taken = _taken_port(plan)
        if taken:
            print(taken, file=sys.stderr)
            return ExitCode.PORT_TAKEN
        return _run(plan, lock, Source(str(path) if path else None, source.flags), color)
    finally:
        lock.release()


def _refuse_settings(error: SettingsError, source: Source) -> int:
    print(error, file=sys.stderr, flush=True)
    environ = settings_sources.inherited_environment(secret_variables=True)
    if beacon.report(error.faults, source.path, environ):
        print("(the engine has been told)", file=sys.stderr)
    return ExitCode.SETTINGS


def _taken_port(plan: Plan) -> str:
    """Why a port cannot be bound; "" when all can."""
    worker = plan.settings.worker
    wanted = [
        (worker.host, worker.port, "worker.port"),
        (worker.admin_host, worker.admin_port, "worker.admin_port"),
    ]
    if plan.local_engine_port:
        wanted.append(("127.0.0.1", plan.local_engine_port, "engine.local_port"))
    end = time.monotonic() + PORT_PATIENCE_S
    for host, port, name in wanted:
        while not is_free(host, port):
            if time.monotonic() >= end:
                holder = process_tree.port_holder(port) or "another program"
                return (
                    f"port {port} ({name}) is held by {holder}: stop it, or choose another port"
                    f" (--set {name}=N; 0 picks a free one)"
                )
            time.sleep(_PORT_POLL_S)
    return ""


def _run(plan: Plan, lock: RunLock, source: Source, color: bool) -> int:
    worker = plan.settings.worker
    console = Console()
    terminal = sys.stderr.isatty() and worker.log_format == "text"
    screen: Screen = Plain()
    stream: Console | Terminal = console
    if terminal:
        width = shutil.get_terminal_size().columns
        screen = stream = Terminal(console.write, width, color)
    # On a terminal the timeline says it all; the files hold every line (`logs NAME`).
    quiet = terminal and worker.log_level == "info"
    mask = log_lines.masker(plan.settings.secrets)
    log_lines.configure("supervisor", worker.log_format, worker.log_level, mask)
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    if quiet:
        handler.addFilter(_matters)

    def echo(line: str) -> None:
        if not (quiet and line[_LEVEL] in _UNSEEN):
            stream.write(line)

    timeline = Timeline(screen)

    async def main() -> int:
        supervisor = Supervisor(plan, lock, echo, timeline, lambda: source.plan_again(plan))
        return await supervisor.run()

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
    return code


def _matters(record: logging.LogRecord) -> bool:
    """It is shown beside the timeline: trouble, and what ``model.info_log`` asks for."""
    return record.levelno >= logging.WARNING or record.name == "supervisor.model"


def _why(code: int) -> str:
    reasons = {int(known): known.doc for known in ExitCode}
    return f"exit {int(code)}, {reasons[code]}"
