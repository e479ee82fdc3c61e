"""What both demo programs need to be served over HTTP: a socket, a runner, lines on stdout.

Its law: the port is bound before anything else is done, and a line goes out whole or not at all;
nobody who stopped reading our output can make us fail. It must not know what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from aiohttp import web

#: Exit code for a setting that cannot be used (sysexits EX_CONFIG).
EXIT_SETTINGS = 78

#: Connections that may wait to be accepted.
_BACKLOG = 1024

#: Seconds that running handlers get between SIGTERM and their cancellation.
_GRACE_S = 0.1


def say(line: str) -> None:
    """Print one line, at once."""
    data = memoryview(f"{line}\n".encode())
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def give_up(message: str) -> NoReturn:
    """End the program because of its settings, saying why."""
    sys.stderr.write(f"{message}\n")
    raise SystemExit(EXIT_SETTINGS)


class Server:
    """One listening socket and the application behind it.

    ``port`` 0 picks a free one. The program ends with EXIT_SETTINGS where it cannot listen.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            self.socket = socket.create_server((host, port), backlog=_BACKLOG)
        except (OSError, OverflowError) as error:
            give_up(f"cannot listen on {host}:{port}: {error}")
        self.url = f"http://{host}:{self.socket.getsockname()[1]}"
        self._runner: web.AppRunner | None = None

    async def start(self, app: web.Application) -> None:
        """Serve from now on, and say where. Handlers are cancelled when their client goes away."""
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_GRACE_S
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self.socket, backlog=_BACKLOG).start()
        say(f"listening on {self.url}")

    async def forget_port(self) -> None:
        """Stop listening; open connections go on."""
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
        self.socket.close()

    async def stop(self) -> None:
        """End everything that is still open."""
        if self._runner is not None:
            await self._runner.cleanup()
        self.socket.close()


def stop_signal(refuse: Callable[[], bool] = lambda: False) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, from now on, unless ``refuse()`` is true then."""
    told = asyncio.Event()

    def on_signal() -> None:
        if refuse():
            say("WARNING ignoring SIGTERM")
        else:
            told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return told
