"""One client connection, and the one exchange that it carries at a time.

A connection reads a request, hands it to the application, and reads no further request until the
answer has ended: what a client pipelines meanwhile waits as raw bytes, at most ``HOLD_BYTES`` and
one read of the socket, and is given up where the answer takes long. Reading goes on, because only
that tells that the client has left; one that closes even half of its connection counts as gone.

Law: the application gets every complete request once, and for each exactly one of two ends: its
own (respond, finish, abort, fail) or ``on_disconnect``. After either, calls on the exchange do
nothing. A begun answer that cannot be completed never looks complete to the client.

No task, timer or log call per request: deadlines are looked at by the server's one sweep. This
module knows neither authentication nor jobs, and opens no socket itself.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import cast

from ingress import responses
from ingress.errors import ErrorKind, Problem
from ingress.exchange import Exchange
from ingress.framing import Framer
from ingress.patience import PIPELINE_S, too_slow
from ingress.sender import Sender
from ingress.shared import (
    BODY,
    BUSY,
    CLOSED,
    HEAD,
    HOLD_BYTES,
    IDLE,
    LINGER,
    STORING,
    WRITE_BYTES,
    Shared,
    app_failed,
)
from ingress.spool import SpoolFile


class Connection(Sender):
    """The protocol of one client socket.

    :param shared: what it has in common with the server's other connections.
    :param below: with TLS, the transport that carries it.
    """

    __slots__ = (
        "_asked", "_deadline", "_exchange", "_framer", "_held", "_parsing", "_reading_paused",
        "_state", "_thrown_bytes", "counted_bytes",
    )  # fmt: skip

    def __init__(self, shared: Shared, below: asyncio.Transport | None = None) -> None:
        super().__init__(shared, below)
        self._framer = Framer(shared.limits, functools.partial(Exchange, self), shared.known)
        #: The accepted exchange whose answer has not ended.
        self._exchange: Exchange | None = None
        self._asked = False  #: it has carried a request
        self._state = IDLE
        #: When the state has lasted too long; 0: the next sweep sets it.
        self._deadline = 0.0
        #: Received but not looked at: it belongs to later requests.
        self._held = b""
        self._parsing = False
        self._reading_paused = False
        #: Its share of the budget's memory, but for what is held back.
        self.counted_bytes = 0
        self._thrown_bytes = 0  #: read after a refusal

    # ------------------------------------------------------------------ events of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the client is connected (with TLS: the handshake is done)."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop has its own
        shared = self.shared
        if shared.overrun:
            self._state = CLOSED
            transport.abort()
            return
        refusal = shared.refusal()
        shared.connections.add(self)
        transport.set_write_buffer_limits(*WRITE_BYTES)
        if refusal is not None:
            self.refuse(Problem(refusal, retry_after_s=1.0))

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        if self._state <= BODY and self.writable and not self._held:
            self._parse(data)
        elif self._state <= BUSY:
            self._hold(data)
        else:
            self._throw_away(len(data))

    def eof_received(self) -> None:
        """asyncio: the client will send no more: it has left. The transport closes itself."""
        if self._exchange is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is gone."""
        shared = self.shared
        handed_over = self._state == BUSY
        self._state = CLOSED
        shared.connections.discard(self)
        shared.slow.discard(self)
        exchange = self._exchange
        self._forget_exchange()
        self._framer.close()
        self._set_held(b"")
        if exchange is not None:
            exchange.client_gone()
            if handed_over:
                shared.app.on_disconnect(exchange)
            else:
                shared.count_refused(ErrorKind.CLIENT_GONE)
        shared.on_lost()

    def pause_writing(self) -> None:
        """asyncio: more is unsent than a client that reads leaves."""
        self.writable = False
        self.shared.slow.add(self)

    def resume_writing(self) -> None:
        """asyncio: its client reads again."""
        self.writable = True
        self.shared.slow.discard(self)
        exchange = self._exchange
        if exchange is None or self._state != BUSY:
            self._resume()
        elif exchange.begun:
            self.shared.app.on_writable(exchange)

    # ------------------------------------------------------------------ requests

    def _hold(self, data: bytes) -> None:
        exchange = self._exchange
        if self._held and exchange is not None and not exchange.keep_alive:
            return  # nothing after this exchange will be answered
        if not self._set_held(self._held + data):
            if exchange is None:
                self._transport.abort()  # it sends requests and reads no answers
                return
            exchange.keep_alive = False
            self._set_held((self._held or data)[:1])  # there was more
        if len(self._held) > HOLD_BYTES:
            self._read_no_further()

    def _set_held(self, data: bytes) -> bool:
        """False: the budget has no room for it, and nothing has changed."""
        if not self.shared.intake.budget.take(len(data) - len(self._held)):
            return False
        self._held = data
        return True

    def _resume(self) -> None:
        """Go on with what was held, if nothing stands against it."""
        if self._state > BODY or not self.writable:
            return
        if data := self._held:
            self._set_held(b"")
            self._parse(data)
        self._read_on()

    def _read_no_further(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading_paused and len(self._held) <= HOLD_BYTES and self._state != CLOSED:
            self._reading_paused = False
            self._transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        framer, start, size = self._framer, 0, len(data)
        self._parsing = True
        try:
            if self._state == IDLE and framer.whole(data):
                start = size
                self._accept_head(framer.request)
                if self._state == BODY:
                    self._hand_over(framer.request)
            while start < size and self.writable:
                if self._state <= HEAD:
                    start = framer.head(data, start)
                    if start < 0:
                        if framer.begun:
                            if self._state == IDLE:
                                self._enter(HEAD)
                            self.shared.intake.count(self, framer.head_bytes)
                        return
                    self._accept_head(framer.request)
                elif self._state == BODY:
                    start = framer.body(data, start)
                    if framer.request.chunked:
                        self.shared.intake.grow(self, framer)
                    if framer.request.file is not None:
                        self._await_disk(framer.request.file, complete=start >= 0)
                    elif start >= 0:
                        self._hand_over(framer.request)
                    if start < 0:
                        self._deadline = 0.0
                        return
                else:
                    break
        except Problem as problem:
            self.refuse(problem)
        finally:
            self._parsing = False
        if start < size and self._state <= BUSY:
            self._hold(data[start:])

    def _accept_head(self, exchange: Exchange) -> None:
        shared = self.shared
        exchange.arrived_at = time.monotonic()
        self._asked = True
        if shared.draining:
            raise Problem(ErrorKind.DRAINING, retry_after_s=1.0)
        shared.active += 1
        self._exchange = exchange
        try:
            fault = shared.app.on_head(exchange)
        except Problem as problem:
            fault = problem
        except Exception as error:
            fault = app_failed(error)
        if fault is not None:
            self._enter(BUSY)
            if exchange.has_body:
                # The body is not read, so where the next request would begin is not known.
                exchange.keep_alive = False
            else:
                self._framer.next()
            refusal = fault if isinstance(fault, Problem) else Problem(fault)
            if refusal.kind is ErrorKind.LENGTH_REQUIRED:  # a body may follow all the same
                raise refusal
            shared.count_refused(refusal.kind)
            exchange.fail(refusal)
        elif exchange.has_body:
            shared.intake.begin(self, self._framer)
            self._enter(BODY)
            if exchange.expects_continue:
                self.write(responses.CONTINUE)
        else:
            self._hand_over(exchange)

    def _await_disk(self, file: SpoolFile, complete: bool) -> None:
        file.moved = functools.partial(self._disk_moved, file)
        if complete:
            self._enter(STORING)
            file.finish()
        elif file.behind:
            self._read_no_further()

    def _disk_moved(self, file: SpoolFile) -> None:
        try:
            if file.problem is not None:
                raise file.problem
            if not file.behind:
                self._read_on()
            if self._state == STORING and not file.waiting_bytes:
                self._framer.request.body = file.map()
                self._hand_over(self._framer.request)
        except Problem as problem:
            self.refuse(problem)

    def _hand_over(self, exchange: Exchange) -> None:
        self._state = BUSY
        self._deadline = 0.0
        self._framer.next()
        try:
            self.shared.app.on_request(exchange)
        except Problem as problem:
            exchange.fail(problem)
        except Exception as error:
            exchange.fail(app_failed(error))

    def _forget_exchange(self) -> None:
        shared = self.shared
        if self.counted_bytes:
            shared.intake.budget.take(-self.counted_bytes)
            self.counted_bytes = 0
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            shared.active -= 1
            if exchange.file is not None:
                shared.intake.drop(exchange)

    def refuse(self, problem: Problem, counted: bool = True) -> None:
        """Answer a request that the application will never see, and close, unless it is over."""
        if self._state >= LINGER:
            return
        if counted:
            self.shared.count_refused(problem.kind)
        lines, request = problem.header_lines(), self._framer.request
        self.send_whole(request, problem.status, lines, problem.body(), False)
        if self._exchange is not None:
            self._exchange.client_gone()
        self._forget_exchange()
        self._linger()

    # ------------------------------------------------------------------ answers

    def end_exchange(self, keep_alive: bool) -> None:
        """The exchange's answer has been written in full."""
        self._forget_exchange()
        if keep_alive:
            self._state = IDLE
            self._deadline = 0.0
            if self._held and not self._parsing:  # not now, amid the application's own work
                self.shared.loop.call_soon(self._resume)
        elif self._held or self._framer.begun:  # refused by its head, its body is unread
            self._linger()
        else:
            self.close()

    def cut(self, reset: bool) -> None:
        """End the connection after a broken answer; ``reset`` where a close would look regular."""
        self._forget_exchange()
        if reset and self._below is not None:
            self._enter(CLOSED)  # TLS's closing words would vouch for a complete answer
            self._transport.abort()
        else:
            self.close()

    # ------------------------------------------------------------------ ends

    def close(self) -> None:
        """Close once everything written has left."""
        self._enter(CLOSED)
        if self._below is None:
            self._transport.close()
        else:
            # TLS allows its closing words, and all that is still before them, a moment only.
            self.shared.loop.call_soon(self._close_if_flushed)

    def _close_if_flushed(self) -> None:
        if self._state == CLOSED and not self.unsent_bytes:
            self._transport.close()

    def leave(self, at_once: bool) -> None:
        """The worker stops: close, or tell who has just connected, or (later) is still sending."""
        if self._state == IDLE and not self._held and self._asked:
            self.close()
        elif self._state == IDLE or (at_once and self._state <= STORING):
            self.refuse(Problem(ErrorKind.DRAINING, retry_after_s=1.0), self._state != IDLE)

    @property
    def lingers(self) -> bool:
        """It was refused, and its client has not closed it yet."""
        return self._state == LINGER

    def _linger(self) -> None:
        self._enter(LINGER)
        self._set_held(b"")
        self._framer.next()  # what came of the request is nobody's any more
        self._read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _throw_away(self, size_bytes: int) -> None:
        # A client that reads only when all is sent gets its refusal, but not for any price.
        self._thrown_bytes += size_bytes
        if self._thrown_bytes >= self.shared.limits.body_bytes:
            self._read_no_further()

    def _enter(self, state: int) -> None:
        self._state = state
        self._deadline = 0.0

    def sweep(self, now: float) -> None:
        """Look at the deadlines; called about once a second with the monotonic time."""
        shared = self.shared
        if self.stalled(now):
            self.guard(True)  # what the kernel still holds is nothing to wait for
            self._transport.abort()
            return
        self._close_if_flushed()
        if (exchange := self._exchange) is not None:
            if self._state == BODY:
                patience_s, size = shared.limits.body_timeout_s, self._framer.body_bytes
                if too_slow(size, exchange.arrived_at, patience_s, now):
                    self._deadline = now
            elif self._reading_paused and now - exchange.arrived_at > PIPELINE_S:
                exchange.keep_alive = self._reading_paused = False
                self._transport.resume_reading()
        if self._deadline == 0.0:
            self._deadline = now + shared.timeouts_s[self._state]
        elif now >= self._deadline:
            if HEAD <= self._state <= STORING:
                self.refuse(shared.intake.late(self._framer.request))
            elif self._state == LINGER and self._reading_paused:
                self._transport.abort()  # a TLS one would read on for the client's last words
            else:
                self.close()
