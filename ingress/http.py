"""The ingress's HTTP/1.1 server: a listening port and the connections that came through it.

Reads top down: ``http.py`` (port, sweep, drain) → ``greeting.py`` (where there is TLS) →
``connection.py`` (one client) → ``exchange.py`` (one answer), ``framing.py`` and ``body.py`` (one
request's bytes). It serves an ``Application`` and knows nothing of authentication, jobs or the
other processes.

Law: what a client can make this process hold is bounded: connections, bytes of a head, of a body,
of all bodies together, of pipelined requests, of unsent answers; and every wait has a deadline
that one timer, the sweep, looks after.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ingress.connection import Connection
from ingress.deaf_port import deafen
from ingress.errors import ErrorKind
from ingress.exchange import Application, Exchange
from ingress.greeting import Greeting
from ingress.intake import MakeSpool
from ingress.shared import Shared
from supervisor import file_limit
from supervisor.client_port import listen
from supervisor.settings import LimitSettings

__all__ = ["Application", "Exchange", "Server"]

#: Seconds between two looks at the deadlines; also how long a Date header is used.
SWEEP_EVERY_S = 1.0

#: Connections that the kernel holds until they are accepted (net.core.somaxconn may allow less).
BACKLOG = 4096

#: Turns of the loop without a new connection after which none waits to be accepted …
QUIET_TURNS = 4
#: … and seconds after which a port that still gets some is closed all the same.
HEAR_S = 0.25
#: Seconds that TLS handshakes may still take when the port closes …
GREET_S = 1.0
#: … and those who were told that it does, to ask, to read that, and to leave.
PART_S = 1.0


class Server:
    """Serves ``app`` on one port.

    The limit on connections is lowered to what the process's file descriptors allow, so that a
    client beyond it is told so instead of being reset by an accept that fails.

    :param app: gets the requests.
    :param limits: what one client may ask.
    :param loop: the uvloop that everything runs on.
    :param spool: takes bodies that are too large for memory.
    """

    def __init__(
        self,
        app: Application,
        limits: LimitSettings,
        loop: asyncio.AbstractEventLoop,
        spool: MakeSpool | None = None,
    ) -> None:
        self._loop = loop
        self._changed = asyncio.Event()
        #: descriptors of one connection: itself, and a body in a file
        self._each = 2 if spool is not None and limits.spool_bytes > 0 else 1
        most = file_limit.connections(limits.connections, self._each)
        self._shared = Shared(app, limits, loop, most, self._changed.set, spool)
        self._listeners: list[asyncio.Server] = []
        self._lent: list[socket.socket] = []  # to be closed with the port, not before
        self._ssl_context: ssl.SSLContext | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open connections, also those whose TLS handshake is under way."""
        return self._shared.open_connections

    @property
    def active(self) -> int:
        """Exchanges whose request was accepted and whose answer has not ended."""
        return self._shared.active

    @property
    def buffered_bytes(self) -> int:
        """Bytes of their requests that are held in memory."""
        return self._shared.intake.budget.memory

    @property
    def spooled_bytes(self) -> int:
        """Bytes of their bodies that are held in files."""
        return self._shared.intake.budget.disk

    @property
    def cut_readers(self) -> int:
        """Clients cut off because they left their answers unread."""
        return self._shared.slow.cut

    @property
    def refused(self) -> dict[ErrorKind, int]:
        """Requests refused before the application saw them, by kind, since the start."""
        return self._shared.refused

    @property
    def idle(self) -> bool:
        """No exchange is under way and every answer has left this process."""
        shared = self._shared
        return not shared.active and not any(one.unsent_bytes for one in shared.connections)

    async def listen(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> int:
        """Open a port and serve.

        :param port: 0 picks a free one.
        :param reuse_port: further processes will listen on the same port.
        :return: the port.
        :raises OSError: the port cannot be had.
        """
        self._ssl_context = ssl_context
        return await self._serve(host=host, port=port, reuse_port=reuse_port)

    async def serve(
        self, sockets: Sequence[socket.socket], ssl_context: ssl.SSLContext | None = None
    ) -> int:
        """Serve on bound sockets, which others may have as well and go on with after a drain.

        :return: the port.
        """
        self._lent, self._ssl_context = list(sockets), ssl_context
        return await self._serve_lent()

    async def _serve_lent(self) -> int:
        for each in self._lent:
            listen(each, BACKLOG)  # uvloop itself would say nothing of a failure
        return [await self._serve(sock=each.dup()) for each in self._lent][-1]

    async def _serve(self, **where: Any) -> int:
        shared, ssl_context = self._shared, self._ssl_context
        listener = await self._loop.create_server(
            lambda: Greeting(shared, ssl_context) if ssl_context else Connection(shared),
            backlog=BACKLOG,
            **where,
        )
        self._listeners.append(listener)
        if self._timer is None:
            self._tick()
        port: int = listener.sockets[0].getsockname()[1]
        return port

    def _tick(self) -> None:
        self._timer = self._loop.call_later(SWEEP_EVERY_S, self._tick)
        self._shared.prefixes.tick(time.time())
        most = self._shared.limits.connections  # others may change the limit of descriptors
        self._shared.max_connections = file_limit.connections(most, self._each)
        self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Enforce every deadline that has passed at ``now`` (monotonic seconds)."""
        for connection in list(self._shared.connections):
            connection.sweep(now)
        for greeting in list(self._shared.handshakes):
            if now - greeting.began_at >= self._shared.limits.header_timeout_s:
                greeting.abort()
        self._changed.set()

    async def drain(self, deadline_s: float, last: bool = True) -> bool:
        """Accept nobody any more, close idle connections, let what runs finish, refuse the rest.

        What has not even arrived at the deadline is refused, too.

        :param deadline_s: seconds that what runs may take.
        :param last: the port closes; otherwise who has not been accepted yet is left to others.
        :return: whether it all finished in time.
        """
        shared = self._shared
        shared.draining = True
        if last:
            await self._close_port()
        self._stop_listening()
        with suppress(TimeoutError):  # who is in the middle of a TLS handshake is told, too
            async with asyncio.timeout(min(deadline_s, GREET_S)):
                while shared.handshakes:
                    self._changed.clear()
                    await self._changed.wait()
        for connection in list(shared.connections):
            connection.leave(at_once=False)
        try:
            async with asyncio.timeout(deadline_s):
                while not self.idle:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            for connection in list(shared.connections):
                connection.leave(at_once=True)
        return True

    async def see_off(self) -> None:
        """After a drain: wait for who was told to go elsewhere, and for slow readers. A connection
        that ends before its client has asked looks like a failure to it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(PART_S):
                while any(one.lingers or one.unsent_bytes for one in self._shared.connections):
                    self._changed.clear()
                    await self._changed.wait()

    async def hear_out(self) -> None:
        """A drain left those who wait to others, and none comes: they are told so."""
        if self._lent:
            await self._serve_lent()
            await self._close_port()

    async def _close_port(self) -> None:
        """Hear nobody new, and accept those who have been heard."""
        for listener in self._listeners:
            for each in listener.sockets:
                with suppress(OSError):
                    deafen(each)
        await self._hear()
        self._stop_listening()
        self._give_back()

    def _give_back(self) -> None:
        while self._lent:
            self._lent.pop().close()

    def _stop_listening(self) -> None:
        while self._listeners:
            self._listeners.pop().close()

    async def _hear(self) -> None:
        """Take what had reached the kernel: who asked before the port closes is told so, not reset.

        A turn of the loop accepts one connection, or reads once from each.
        """
        shared, end = self._shared, self._loop.time() + HEAR_S
        quiet_turns = 0
        while quiet_turns < QUIET_TURNS and self._loop.time() < end:
            before = shared.open_connections
            await asyncio.sleep(0)
            quiet_turns = quiet_turns + 1 if shared.open_connections == before else 0

    def close(self) -> None:
        """Close the port and cut every connection, whatever it is doing."""
        self._shared.draining = True
        self._stop_listening()
        self._give_back()
        if self._timer is not None:
            self._timer.cancel()
        for greeting in list(self._shared.handshakes):
            greeting.abort()
        for connection in list(self._shared.connections):
            connection.abort()
        self._shared.intake.close()
