"""The plain HTTP port of this machine, where a model server ends the sessions that it is done with.

Source: the public PyWorker (``WORKER_HTTP_PORT``). ``POST /session/end`` and nothing else, and only
from this machine. The worker does its work without it: a port that is taken is asked for again.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from ingress.errors import ErrorKind, Problem
from ingress.exchange import Application, Exchange
from ingress.http import Server
from supervisor.settings import LimitSettings

HOST = "127.0.0.1"
PATH = b"/session/end"
MAX_CONNECTIONS = 64
_log = logging.getLogger("ingress")


class _Webhooks:
    """The door, for one path."""

    def __init__(self, door: Application) -> None:
        self._door = door
        self.on_request = door.on_request
        self.on_writable = door.on_writable
        self.on_disconnect = door.on_disconnect

    def on_head(self, exchange: Exchange) -> ErrorKind | Problem | None:
        """Refuse everything else."""
        if exchange.path != PATH:
            return Problem(ErrorKind.UNKNOWN_ROUTE, "this port takes POST /session/end only")
        return self._door.on_head(exchange)


class WebhookPort:
    """The port.

    Args:
        door: answers the calls.
        port: where; 0: nowhere.
        shared: other processes listen there, too.
    """

    def __init__(
        self,
        door: Application,
        limits: LimitSettings,
        loop: asyncio.AbstractEventLoop,
        port: int,
        shared: bool,
    ) -> None:
        few = msgspec.structs.replace(
            limits, connections=MAX_CONNECTIONS, buffered_bytes=min(limits.buffered_bytes, 2**22)
        )
        self._server = Server(_Webhooks(door), few, loop)
        self._port = port
        self._shared = shared
        self._open = False
        self._said = ""

    @property
    def refused(self) -> dict[ErrorKind, int]:
        """Requests that were refused before the door saw them, by kind."""
        return self._server.refused

    async def open(self) -> None:
        """Listen, if it does not yet. Call now and then."""
        if self._open or not self._port:
            return
        self._open = True
        try:
            await self._server.listen(HOST, self._port, reuse_port=self._shared)
        except OSError as error:
            self._open = False
            text = f"no webhooks: cannot listen on {HOST} port {self._port}: {error.strerror}"
            if text != self._said:
                self._said = text
                _log.error("%s (choose another worker.http_port, or 0 for none)", text)

    async def drain(self, deadline_s: float) -> None:
        """Close the port; let what runs finish."""
        self._port = 0
        await self._server.drain(deadline_s)

    async def see_off(self) -> None:
        """Wait a moment for who was told to go elsewhere."""
        await self._server.see_off()

    def close(self) -> None:
        """Cut everything."""
        self._port = 0
        self._server.close()
