"""A client of a TLS port, from its first packet until its handshake has ended.

asyncio tells a protocol of its client only when the handshake has ended, so whoever never ends one
would be seen by nobody. Here the plain connection comes first: it is counted, and TLS begins with
the first bytes that look like it; who speaks plain HTTP instead is told so, in plain HTTP. The
connection behind keeps hold of the plain transport, because only that knows what has left.

Law: open connections and handshakes together are no more than connections alone may be, and no
handshake takes longer than ``limits.header_timeout_s``. Where there is no room the oldest handshake
makes it: an honest one takes some milliseconds, so whoever holds many of them keeps nobody out.

This module knows no request; certificates are the context's matter.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import cast

from ingress.connection import Connection
from ingress.errors import ErrorKind, Problem
from ingress.shared import Shared

#: Seconds for the closing words after the last byte.
SHUTDOWN_S = 2.0

_TLS_HANDSHAKE = 0x16
_SPEAK_TLS = "This port speaks TLS; use https://."


class Greeting(asyncio.Protocol):
    """The protocol of one client socket, until a ``Connection`` takes over.

    :param shared: what the connections of the server have in common.
    :param context: the certificate.
    """

    __slots__ = ("_context", "_first", "_shared", "_task", "_transport", "began_at")

    _transport: asyncio.Transport

    def __init__(self, shared: Shared, context: ssl.SSLContext) -> None:
        self._shared = shared
        self._context = context
        self._first = b""
        self._task: asyncio.Task[None] | None = None
        #: Monotonic time of its first packet.
        self.began_at = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: somebody is there."""
        self._transport = cast(asyncio.Transport, transport)
        shared = self._shared
        if shared.overrun and shared.handshakes:
            next(iter(shared.handshakes)).abort()
        if shared.overrun:
            self._transport.abort()
        else:
            shared.handshakes[self] = None

    def data_received(self, data: bytes) -> None:
        """asyncio: the first words."""
        if self not in self._shared.handshakes:
            return
        if data[0] != _TLS_HANDSHAKE:
            self._forget()
            connection = Connection(self._shared)
            self._transport.set_protocol(connection)
            connection.connection_made(self._transport)
            connection.refuse(Problem(ErrorKind.INVALID_REQUEST, _SPEAK_TLS))
            return
        self._transport.pause_reading()
        self._first = data
        loop = self._shared.loop
        self._task = loop.create_task(self._shake_hands())
        loop.call_soon(loop.call_soon, self._hand_over_first)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: it has left before it said anything."""
        self._forget()

    def abort(self) -> None:
        """End it."""
        self._forget()
        self._transport.abort()

    async def _shake_hands(self) -> None:
        shared = self._shared
        if self not in shared.handshakes:
            return  # aborted meanwhile
        connection = Connection(shared, self._transport)
        try:
            # Its first step asks the loop for two calls: that TLS begins, and that reading goes on.
            # ``_hand_over_first`` is the third, so nothing can be read before it.
            transport = await shared.loop.start_tls(
                self._transport,
                connection,
                self._context,
                server_side=True,
                ssl_handshake_timeout=shared.limits.header_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError:
            return  # a stranger who speaks no TLS, or an old one, or has left: no news
        finally:
            self._forget()
        if transport is not None and not transport.is_closing():  # closing: aborted meanwhile
            connection.connection_made(transport)

    def _hand_over_first(self) -> None:
        """What was read before TLS began belongs to it."""
        protocol = self._transport.get_protocol()
        data, self._first = self._first, b""
        if protocol is self or self._transport.is_closing():
            return  # aborted meanwhile
        taker = cast(asyncio.BufferedProtocol, protocol)
        while data:
            room = memoryview(taker.get_buffer(len(data)))
            size = min(len(room), len(data))
            room[:size] = data[:size]
            taker.buffer_updated(size)
            data = data[size:]

    def _forget(self) -> None:
        shared = self._shared
        if self in shared.handshakes:
            del shared.handshakes[self]
            shared.on_lost()
