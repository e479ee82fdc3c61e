"""What the connections of one server have in common, and the states that each goes through.

Law: every figure in here is what the connections say at this moment: whoever adds, takes away. It
knows neither sockets nor requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ingress import responses
from ingress.budget import MOST_CREDITS
from ingress.errors import ErrorKind, Problem
from ingress.exchange import Application
from ingress.intake import Intake, MakeSpool
from ingress.known_requests import KnownRequests
from ingress.slow_readers import SlowReaders
from supervisor.settings import LimitSettings

if TYPE_CHECKING:
    from ingress.connection import Connection
    from ingress.greeting import Greeting

_log = logging.getLogger("ingress")

#: Seconds for which the rest of a refused request is thrown away before its connection closes: a
#: close with unread bytes would reset the connection, and could take the refusal with it.
LINGER_S = 2.0

#: Bytes of pipelined requests beyond which a connection is not read until its answer has ended.
HOLD_BYTES = 65_536

#: Unsent bytes of one connection above which, and below which again, its client counts as slow.
WRITE_HIGH_BYTES = 16_384
WRITE_LOW_BYTES = 4_096
WRITE_BYTES = (WRITE_HIGH_BYTES, WRITE_LOW_BYTES)

#: Connections beyond the limit that are told so at one time; further ones are just closed.
OVERFLOW_CONNECTIONS = 64

# What a connection waits for. Up to BODY it parses what comes; from LINGER it throws it away. In
# STORING its request is complete, and not all of it is on the disk.
IDLE, HEAD, BODY, STORING, BUSY, LINGER, CLOSED = range(7)


class Shared:
    """Limits, counters and the connections themselves.

    :param app: gets the requests.
    :param max_connections: further clients are told so.
    :param on_lost: called whenever a connection has ended.
    :param spool: takes the bodies that are too large for memory; None: nothing does.
    """

    __slots__ = (
        "active",
        "app",
        "connections",
        "draining",
        "handshakes",
        "intake",
        "known",
        "limits",
        "loop",
        "max_connections",
        "on_lost",
        "prefixes",
        "refused",
        "slow",
        "timeouts_s",
    )

    def __init__(
        self,
        app: Application,
        limits: LimitSettings,
        loop: asyncio.AbstractEventLoop,
        max_connections: int,
        on_lost: Callable[[], None],
        spool: MakeSpool | None = None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.loop = loop
        self.max_connections = max_connections
        self.on_lost = on_lost
        self.prefixes = responses.Prefixes(time.time())
        #: Heads of requests that came before.
        self.known = KnownRequests()
        self.connections: set[Connection] = set()
        #: Clients of a TLS port whose handshake has not ended, oldest first.
        self.handshakes: dict[Greeting, None] = {}
        #: Exchanges whose head was accepted and whose answer has not ended.
        self.active = 0
        #: What is held of their requests …
        self.intake = Intake(limits, spool)
        #: … and of their answers.
        each_bytes = MOST_CREDITS * limits.stream_credit_bytes + WRITE_HIGH_BYTES
        self.slow = SlowReaders(limits.unsent_bytes, each_bytes, loop)
        self.draining = False
        #: Requests that never reached the application, by kind.
        self.refused: dict[ErrorKind, int] = {}
        #: Seconds that a connection may spend in each state, from IDLE to CLOSED.
        self.timeouts_s = (
            limits.keepalive_s,
            limits.header_timeout_s,
            limits.body_timeout_s,
            limits.body_timeout_s,
            math.inf,
            LINGER_S,
            math.inf,
        )

    @property
    def open_connections(self) -> int:
        """All of them, also those whose handshake is under way."""
        return len(self.connections) + len(self.handshakes)

    @property
    def overrun(self) -> bool:
        """So many clients are here that a further one is not even told so."""
        return self.open_connections >= self.max_connections + OVERFLOW_CONNECTIONS

    def refusal(self) -> ErrorKind | None:
        """What a further client is told; None: it is served."""
        if len(self.connections) >= self.max_connections:
            return ErrorKind.OVERLOADED
        return ErrorKind.DRAINING if self.draining else None

    def count_refused(self, kind: ErrorKind) -> None:
        """A request ended before the application took it."""
        self.refused[kind] = self.refused.get(kind, 0) + 1


def app_failed(error: Exception) -> Problem:
    """What its client is told when the application failed at a request; the others go on."""
    _log.critical("failed at a request", exc_info=error)
    return Problem(ErrorKind.INTERNAL)
