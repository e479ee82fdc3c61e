"""The pool of connections to the model server, and its policy.

Law: whatever goes wrong is told at once, and what to do about it is the queue's decision; also
where a kept connection turns out to be closed, because that may be how a server begins to die. Only
a request that is met by what may be the rest of another's answer is sent again on a new connection,
once, and nobody is told unless that ends, too: then it counts as sent twice.

The most recently used connection is used next, so that the others may age and be closed by the
server. Connections are as many as there are requests at once; that bound is the queue's. One timer
watches all deadlines, so a timeout is up to ``SWEEP_S`` late.

Not known here: jobs, lanes, retries, readiness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from urllib.parse import urlsplit

import msgspec

from backend_adapter.known_heads import KnownHeads
from backend_adapter.model_connection import Connection
from backend_adapter.model_request import Request, Sink
from backend_adapter.response_headers import ResponseHead

SWEEP_S = 0.25
LONG_KEPT = 256  #: idle connections that are kept for longer than a moment …
LET_GO_AT_ONCE = 256  #: … and how many of the others are closed in one turn
CACHED_HEADS = 1024  #: request heads that are remembered …
CACHED_BYTES = 256  #: … of those whose path and headers together are this short


class Endpoint(msgspec.Struct, frozen=True):
    """Where a model server listens."""

    host: str
    port: int
    authority: str  #: value of the host header
    prefix: str  #: path before every path, without a slash at its end
    unix: str = ""  #: path of its socket file, where it has one instead of a port


class ProbeResult(msgspec.Struct, frozen=True):
    """Outcome of a probe: the status of a complete response, or 0 and what went wrong."""

    status: int
    error: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


def parse_url(url: str) -> Endpoint:
    """Take apart the base URL of a model server.

    Raises:
        ValueError: neither ``http://host[:port][/prefix]`` nor ``unix:///path``.
    """
    if url.startswith("unix:///"):
        return Endpoint("", 0, "localhost", "", url.removeprefix("unix://"))
    hint = f"model server URL {url!r}: it must look like http://127.0.0.1:18000"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{hint} ({error})") from None
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"{hint} (http, a host, and no user name)")
    if parts.query or parts.fragment:
        raise ValueError(f"{hint} (no query and no fragment)")
    return Endpoint(parts.hostname, port or 80, parts.netloc, parts.path.rstrip("/"))


class ModelClient:
    """Sends requests to one model server. Lives on one event loop; not for other threads.

    ``base_url``: ``http://host[:port][/prefix]``. Timeouts are in seconds; 0: none (not for
    connecting). A connection is kept for the next request while fewer than ``max_kept`` are open.
    """

    def __init__(
        self,
        base_url: str,
        loop: asyncio.AbstractEventLoop,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float = 0.0,
        idle_timeout_s: float = 0.0,
        max_kept: int = 256,
    ) -> None:
        self._endpoint = parse_url(base_url)
        self._loop = loop
        self._connect_timeout_s = connect_timeout_s
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._max_kept = max_kept
        self._idle: dict[Connection, None] = {}  #: the one that was used last stands last
        self._least_idle = 0  #: since the last look: so many have not been used
        self._active: set[Connection] = set()
        self._connecting: dict[Request, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heads: dict[tuple[str, str, bytes], tuple[bytes, bytes]] = {}
        self.known_heads = KnownHeads()
        self._timer = loop.call_later(SWEEP_S, self._sweep)
        #: It is the process that holds a worker.py: no two of its requests' heads are the same, or
        #: free of what only their clients should know.
        self.hosted = False
        self.opened = 0  #: connections that were established
        self.reused = 0  #: requests that found one
        self.progress_at = 0.0  #: monotonic time of the last byte of any job's response; 0: never

    def move(self, base_url: str) -> bool:
        """It is somewhere else from now on; what runs goes on where it is. False: it is not."""
        endpoint = parse_url(base_url)
        if endpoint == self._endpoint:
            return False
        self._endpoint = endpoint
        self._heads.clear()
        for connection in list(self._idle):
            connection.abandon()
        self._idle.clear()
        for connection in self._active:
            connection.counted = False  # it is not used again, and says nothing of the new one
        return True

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def in_flight(self) -> int:
        """Requests, and probes, that have not ended."""
        return len(self._active) + len(self._connecting)

    # ------------------------------------------------------------------------ requests

    def send(self, request: Request) -> None:
        """Send a new request; its sink hears of it later, never before this returns.

        Raises:
            ValueError: path or headers would not form one valid request head. Nothing was sent.
        """
        key = (request.method, request.path, request.headers)
        head = self._heads.get(key)
        if head is None:
            head = _request_head(self._endpoint, *key)
            if len(request.path) + len(request.headers) <= CACHED_BYTES and not self.hosted:
                if len(self._heads) >= CACHED_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        request.head = b"%b%d%b" % (head[0], len(request.body), head[1])
        while request.redeliver and self._idle:
            connection = self._idle.popitem()[0]
            self._least_idle = min(self._least_idle, len(self._idle))
            if connection.usable:
                self.reused += 1
                connection.reused = True
                self._active.add(connection)
                connection.start(request)
                return
        if self._idle and len(self._idle) + self.in_flight >= self._max_kept:
            self._let_go(1)
        self._open(request, self._endpoint, counted=True)

    def cancel(self, request: Request) -> None:
        """Close this request's connection; its sink hears nothing more. Void if it has ended."""
        task = self._connecting.pop(request, None)
        if task is not None:
            task.cancel()
        elif request.connection is not None:
            connection = request.connection
            self._active.discard(connection)
            connection.abandon()

    def pause(self, request: Request) -> None:
        """Stop reading the response until ``resume``. Void if it has ended or not begun."""
        if request.connection is not None:
            request.connection.pause()

    def resume(self, request: Request) -> None:
        """Read on."""
        if request.connection is not None:
            request.connection.resume()

    async def probe(self, target: str, timeout_s: float) -> ProbeResult:
        """GET a path of the model server, or an absolute ``http://`` URL, on a new connection.

        Raises:
            ValueError: ``target`` is neither.
        """
        endpoint, path = self._endpoint, target
        if not target.startswith("/"):
            parts = urlsplit(target)
            endpoint = parse_url(parts._replace(path="", query="", fragment="").geturl())
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return await self._once(endpoint, "GET", path, b"", b"", timeout_s)

    async def post(self, path: str, headers: bytes, body: bytes, timeout_s: float) -> ProbeResult:
        """POST to a path of the model server, once, on a new connection; only the status counts.

        Raises:
            ValueError: no request can be made of path and headers.
        """
        return await self._once(self._endpoint, "POST", path, headers, body, timeout_s)

    async def _once(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: bytes,
        body: bytes,
        timeout_s: float,
    ) -> ProbeResult:
        result: asyncio.Future[ProbeResult] = self._loop.create_future()
        request = Request(method, path, headers, body, _ProbeSink(result), redeliver=False)
        before, after = _request_head(endpoint, method, path, headers)
        request.head = b"%b%d%b" % (before, len(body), after)
        self._open(request, endpoint, counted=False)
        try:
            async with asyncio.timeout(timeout_s):
                return await result
        except TimeoutError:
            return ProbeResult(0, f"no answer within {timeout_s:g} s")
        finally:
            self.cancel(request)

    async def reach(self, timeout_s: float) -> str:
        """Take a TCP connection and let it go. Returns what is wrong; "" when it stood."""
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(timeout_s):
                transport = await self._dial(endpoint, asyncio.Protocol)
        except TimeoutError:
            return f"no connection to {endpoint.authority} within {timeout_s:g} s"
        except (OSError, UnicodeError) as error:
            return f"cannot connect to {endpoint.authority}: {error}"
        transport.abort()
        return ""

    def close_all(self, reason: str) -> None:
        """The model server is gone: end every request, and keep no connection to it."""
        for connection in list(self._idle):
            connection.abandon()
        self._idle.clear()
        active = list(self._active)
        for request, task in list(self._connecting.items()):
            if self._connecting.pop(request, None) is not None:
                task.cancel()
                request.sink.on_lost(int(request.resent), reason)
        for connection in active:
            self._active.discard(connection)
            connection.fail(reason)

    async def close(self) -> None:
        """End everything. The client cannot be used again."""
        self._timer.cancel()
        self.close_all("the worker is stopping")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------- called by connections

    def connected(self, connection: Connection, request: Request) -> None:
        if self._connecting.pop(request, None) is None:
            connection.abort()
            return
        self.opened += 1
        self._active.add(connection)
        connection.start(request)

    def freed(self, connection: Connection, reusable: bool) -> None:
        self._active.discard(connection)
        if not reusable:
            return
        if connection.counted and len(self._idle) + len(self._active) < self._max_kept:
            self._idle[connection] = None
        else:
            connection.abort()

    def closed(self, connection: Connection) -> None:
        self._active.discard(connection)
        self._idle.pop(connection, None)

    def resend(self, request: Request) -> None:
        request.resent = True
        self._open(request, self._endpoint, counted=True)

    # ---------------------------------------------------------------------------- inside

    def _open(self, request: Request, endpoint: Endpoint, counted: bool) -> None:
        request.sent_at = self._loop.time()
        task = self._loop.create_task(self._connect(request, endpoint, counted))
        self._connecting[request] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, request: Request, endpoint: Endpoint, counted: bool) -> None:
        def protocol() -> Connection:
            at_home = endpoint is self._endpoint  # it may have moved meanwhile
            return Connection(self, self._loop, request, counted and at_home)

        try:
            await self._dial(endpoint, protocol)
        except (OSError, UnicodeError) as error:
            if self._connecting.pop(request, None) is not None:
                text = f"cannot connect to the model server at {endpoint.authority}: {error}"
                request.sink.on_lost(int(request.resent), text)

    async def _dial(
        self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]
    ) -> asyncio.Transport:
        if endpoint.unix:
            transport, _ = await self._loop.create_unix_connection(protocol, endpoint.unix)
        else:
            transport, _ = await self._loop.create_connection(
                protocol, endpoint.host, endpoint.port
            )
        return transport

    def _let_go(self, many: int) -> None:
        """Close the idle connections that have not been used for longest."""
        for connection in list(islice(self._idle, many)):
            del self._idle[connection]
            connection.abandon()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        # what a burst has left goes soon, before the server closes all of it in one moment
        unused = min(self._least_idle, len(self._idle)) - LONG_KEPT
        self._let_go(min(max(unused, 0), LET_GO_AT_ONCE))
        self._least_idle = len(self._idle)
        now = self._loop.time()
        for request, task in list(self._connecting.items()):
            late = now - request.sent_at > self._connect_timeout_s
            if late and self._connecting.pop(request, None) is not None:
                task.cancel()
                text = f"no connection to the model server within {self._connect_timeout_s:g} s"
                request.sink.on_lost(int(request.resent), text)
        for connection in list(self._active):
            problem = connection.overdue(now, self._first_byte_timeout_s, self._idle_timeout_s)
            if problem:
                self._active.discard(connection)
                connection.break_off("model_timeout", f"the model server sent {problem}")


def _request_head(
    endpoint: Endpoint, method: str, path: str, headers: bytes
) -> tuple[bytes, bytes]:
    """The head of a request: what stands before the length of its body, and what after."""
    whole = endpoint.prefix + path
    if not path.startswith("/") or not whole.isascii() or not whole.isprintable() or " " in whole:
        raise ValueError(f"path {path!r} cannot be sent: it must begin with / and be URL-encoded")
    if not method.isascii() or not method.isalpha():
        raise ValueError(f"method {method!r} is not a word")
    if (headers and headers[-2:] != b"\r\n") or b"\r\n\r\n" in headers or headers[:2] == b"\r\n":
        raise ValueError("header lines must each end in one CRLF")
    line = f"{method} {whole} HTTP/1.1\r\nhost: {endpoint.authority}\r\ncontent-length: "
    return line.encode(), b"\r\n%b\r\n" % headers


class _ProbeSink(Sink):
    """Keeps the status of a response and drops the rest."""

    def __init__(self, result: asyncio.Future[ProbeResult]) -> None:
        self._result = result
        self._status = 0

    def on_head(self, head: ResponseHead) -> None:
        self._status = head.status

    def on_body(self, data: bytes) -> None:
        pass

    def on_end(self) -> None:
        self._settle(ProbeResult(self._status))

    def on_lost(self, sent: int, reason: str) -> None:
        self._settle(ProbeResult(0, reason))

    def on_broken(self, kind: str, message: str) -> None:
        self._settle(ProbeResult(0, message))

    def _settle(self, outcome: ProbeResult) -> None:
        if not self._result.done():  # whoever waited may have been cancelled in the same tick
            self._result.set_result(outcome)
