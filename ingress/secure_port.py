"""The port of clients that come with TLS: each counts from its first packet on.

asyncio tells a protocol of its client only when the handshake has ended, so whoever never ends one
would be seen by nobody. Here the clients are accepted by hand. Nothing is spent on one but its
socket until it says something; who then speaks plain HTTP is told so, in plain HTTP.

Law: open connections and handshakes together are no more than connections alone may be, and no
handshake takes longer than ``limits.header_timeout_s``. Where there is no room the oldest handshake
makes it: an honest one takes some milliseconds, so whoever holds many of them keeps nobody out.

This module knows no request; certificates are the context's matter.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time

from ingress.connection import Connection
from ingress.errors import ErrorKind, Problem
from ingress.shared import Shared

#: Seconds for the closing words after the last byte.
SHUTDOWN_S = 2.0
#: Clients accepted in one turn of the loop.
ACCEPTS_AT_ONCE = 128
#: Seconds until the next try where no file descriptor is free.
PAUSE_S = 1.0

_TLS_HANDSHAKE = b"\x16"


class Handshake:
    """One that has not ended.

    :param client: the accepted socket.
    :param began_at: monotonic time.
    """

    __slots__ = ("began_at", "client", "task")

    def __init__(self, client: socket.socket, began_at: float) -> None:
        self.client = client
        self.began_at = began_at
        #: Does the work once the client has said something.
        self.task: asyncio.Task[None] | None = None


class _PlainClient(Connection):
    """Speaks no TLS, on the port where that is spoken."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not transport.is_closing():
            self.refuse(
                Problem(ErrorKind.INVALID_REQUEST, "This port speaks TLS; use https://, or wss://.")
            )


class SecurePort:
    """Listens, and makes a ``Connection`` of every client whose handshake succeeds.

    :param shared: what the connections have in common.
    :param context: the certificate.
    """

    def __init__(self, shared: Shared, context: ssl.SSLContext) -> None:
        self._shared = shared
        self._loop = shared.loop
        self._context = context
        self._listeners: list[socket.socket] = []

    def listen(self, host: str, port: int, backlog: int, reuse_port: bool) -> int:
        """Open the port on every address that ``host`` stands for.

        :return: the port.
        :raises OSError: it cannot be had.
        """
        passive = socket.AI_PASSIVE
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=passive)
        try:
            for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
                listener = socket.create_server(
                    address[:2], family=family, backlog=backlog, reuse_port=reuse_port
                )
                listener.setblocking(False)
                self._listeners.append(listener)
        except OSError:
            self.close()
            raise
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)
        bound: int = self._listeners[0].getsockname()[1]
        return bound

    def close(self) -> None:
        """Accept nobody any more; handshakes go on."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def cut(self) -> None:
        """End every handshake."""
        for connection in list(self._shared.handshakes):
            self._cut(connection)

    def sweep(self, now: float) -> None:
        """End those that have lasted too long at ``now`` (monotonic seconds)."""
        for connection, handshake in list(self._shared.handshakes.items()):
            if now - handshake.began_at < self._shared.limits.header_timeout_s:
                break
            self._cut(connection)

    # ------------------------------------------------------------------ a client comes

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError:
                # No descriptor is free: to try again at once would be to spin.
                self._loop.remove_reader(listener)
                self._loop.call_later(PAUSE_S, self._accept_again, listener)
                return
            self._greet(client, time.monotonic())

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _greet(self, client: socket.socket, now: float) -> None:
        shared = self._shared
        if shared.overrun and shared.handshakes:
            self._cut(next(iter(shared.handshakes)))
        if shared.overrun:
            client.close()
            return
        client.setblocking(False)
        connection = Connection(shared)
        shared.handshakes[connection] = Handshake(client, now)
        self._loop.add_reader(client, self._spoke, connection)

    def _spoke(self, connection: Connection) -> None:
        handshake = self._shared.handshakes[connection]
        client = handshake.client
        try:
            first = client.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        self._loop.remove_reader(client)
        if not first:
            self._forget(connection)
            client.close()
            return
        shake = self._secure if first == _TLS_HANDSHAKE else self._refuse_plain
        handshake.task = self._loop.create_task(shake(connection, client))

    async def _secure(self, connection: Connection, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,
                ssl=self._context,
                ssl_handshake_timeout=self._shared.limits.header_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError:
            pass  # a stranger who speaks no TLS, or an old one, or has left: no news
        finally:
            self._forget(connection)

    async def _refuse_plain(self, connection: Connection, client: socket.socket) -> None:
        self._forget(connection)
        await self._loop.connect_accepted_socket(
            functools.partial(_PlainClient, self._shared), client
        )

    # ------------------------------------------------------------------ ends

    def _forget(self, connection: Connection) -> None:
        if self._shared.handshakes.pop(connection, None) is not None:
            self._shared.on_lost()

    def _cut(self, connection: Connection) -> None:
        handshake = self._shared.handshakes[connection]
        self._forget(connection)
        if handshake.task is None:
            self._loop.remove_reader(handshake.client)
        else:
            handshake.task.cancel()  # it may not even have begun
        handshake.client.close()
