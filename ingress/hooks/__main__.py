"""Entry of the hook host: ``python -m ingress.hooks hooks``. Started by the supervisor only.

The service lives in a thread of its own; the main thread is the worker.py's.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

import uvloop

from ingress.hooks import own_log
from ingress.hooks.load import ScriptError, execute, ready_names
from ingress.hooks.process import HookHost
from ingress.hooks.worker import set_host
from supervisor import child
from supervisor.exit_codes import ExitCode
from supervisor.settings_sources import forget_handoff

#: Between two looks at whether the file's threads have ended.
THREADS_EVERY_S = 0.1


def main() -> None:
    """Run the service, then the file; end with the service."""
    name = sys.argv[1]
    handoff = child.enter(name)
    own_log.keep()
    forget_handoff()  # the file, and what it starts, have no use for it
    hosts: list[HookHost] = []
    started, codes = threading.Event(), [int(ExitCode.BUG)]

    def build(runtime: child.Runtime) -> HookHost:
        hosts.append(HookHost(runtime))
        runtime.loop.call_soon(started.set)
        return hosts[0]

    async def service() -> int:
        return await child.Runtime(name, handoff, signals=False).run(build)

    def run_service() -> None:
        try:
            codes[0] = uvloop.run(service())
        finally:
            started.set()
            end(codes[0])

    thread = threading.Thread(target=run_service, name="service", daemon=True)
    thread.start()
    started.wait()
    if hosts:
        _run_file(hosts[0], handoff.settings.hooks.file)
    thread.join()


def end(code: int) -> NoReturn:
    """End the process, whatever the file has done to its streams."""
    for stream in (sys.stderr, sys.stdout):
        with suppress(Exception):  # closed, None, or something of the file's own
            stream.flush()
    os._exit(code)


def _is_users(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.main_thread()


def _run_file(host: HookHost, path: str) -> None:
    set_host(host)
    ready_names()
    failure, permanent = "", False
    try:
        execute(path)
    except ScriptError as error:
        failure, permanent = str(error), error.permanent
    if failure:
        host.ended(failure, permanent)
    _end_as_python_does(host)
    if not failure:
        host.ended("", permanent=False)


def _end_as_python_does(host: HookHost) -> None:
    """Wait for the file's threads, one of which may run its Worker, and call what it registered.
    Once its Worker has ended, nobody waits for what else it has running.
    """
    while not host.over and any(_is_users(thread) for thread in threading.enumerate()):
        host.wait_over(THREADS_EVERY_S)
    with suppress(Exception):  # whatever user code raises
        atexit._run_exitfuncs()


if __name__ == "__main__":
    main()
