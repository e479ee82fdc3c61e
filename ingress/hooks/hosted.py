"""Answers whole requests where user code forms the response, or stands in for the model server.

The adapter sends such a job here as it sends others to the model server, over HTTP on a socket file
that only this user may open. So hooks get what they were written for: aiohttp's own request and
response, a client that leaves is a cancelled task, and whoever reads slowly slows the model server.

Law: every request is answered or its connection is cut: a hook that raises is a typed 500 (422 for
a bad payload), one that hangs a 504 (a remote function, like a model, has all the time that its
request has), and where the model server was lost before it answered the adapter sees a lost
connection, and may send the job again; one that takes no connections is told by a 503 with
``UNSENT_HEADER``, so that the job has not been sent. Bodies of requests at work hold at most
``limits.buffered_bytes``, or one body; beyond that a request is a typed 503.

It runs on the loop that the worker.py runs on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from backend_adapter.hook_messages import ROUTE_HEADER, TICKET_HEADER, UNSENT_HEADER
from ingress.errors import KINDS, ErrorKind, Problem
from ingress.hooks import calls
from ingress.hooks.calls import BadHook
from ingress.hooks.functions import NoPlace, RemoteFunctions
from ingress.hooks.handlers import Hooked
from ingress.hooks.payload import ApiPayload
from ingress.routes import is_pattern
from supervisor.settings import LimitSettings

#: Seconds between two looks at how far a response has come.
LOOK_EVERY_S = 0.5
#: Seconds between two looks at whether the socket file is there.
FILE_EVERY_S = 1.0
#: After which a client may try again that found no room for its body.
RETRY_S = 1
#: Connections that wait while the file's loop is busy.
BACKLOG = 4096
#: What the head of a request is longer here than at the worker's door, at most.
OUR_BYTES = 1024
OUR_HEADERS = 16
#: Headers that frame a body, or belong to one connection.
_OF_A_CONNECTION = (
    "Connection", "Content-Length", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade",
    UNSENT_HEADER,
)  # fmt: skip
#: A hook that passes on headers and body would pass on what the body is not any more.
_PLAIN = {"accept-encoding": "identity"}
#: Seconds that the adapter may keep a connection without a request: it is never closed before us.
KEPT_S = 30 * 86_400.0
#: Errors of a connection that nobody took.
_NOT_THERE = frozenset(
    (errno.ECONNREFUSED, errno.ENOENT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)
)
_log = logging.getLogger("hooks")


class Hosted:
    """The server.

    Args:
        routes: by their configured path.
        model_url: where requests go that have a model server.
        redeem: the payload object of a ticket; None: it is not kept any more.
        timeout_s: seconds that a hook may take once nothing more can come from the model server,
            and that a remote function may wait until those before it have returned.
        idle_s: seconds that it may take while something can; 0: no limit.
        limits: what ingress lets through comes through here as well.
        on_idle: called when the last request has its answer.
    """

    def __init__(
        self,
        routes: Mapping[str, Hooked],
        model_url: str,
        *,
        redeem: Callable[[str], ApiPayload | None],
        timeout_s: float,
        idle_s: float,
        limits: LimitSettings,
        on_idle: Callable[[], None],
    ) -> None:
        self._routes = routes
        self._model_url = model_url
        self._redeem = redeem
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._limits = limits
        self._on_idle = on_idle
        self.active = 0  #: requests that have no answer yet
        self._held_bytes = 0  #: of their bodies
        self._functions = RemoteFunctions(timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._path = ""
        self._site: web.UnixSite | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Task[None] | None = None

    async def start(self, path: str) -> None:
        """Listen on the socket file ``path``."""
        limits = self._limits
        app = web.Application(client_max_size=limits.body_bytes + 2**20)
        app.router.add_route("*", r"/{path:[\s\S]*}", self._answer)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEPT_S,
            max_line_size=limits.request_line_bytes + OUR_BYTES,
            # one of ours names the route, which is as long as a request line may be
            max_field_size=max(limits.header_bytes, limits.request_line_bytes) + OUR_BYTES,
            max_headers=limits.header_count + OUR_HEADERS,
        )
        await self._runner.setup()
        self._path = path
        await self._listen()
        self._look()
        if self._model_url.startswith("http"):
            trace = aiohttp.TraceConfig()
            trace.on_request_redirect.append(_on_redirect)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),  # one client's are not another's
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
                trace_configs=[trace],
            )

    async def _listen(self) -> None:
        assert self._runner is not None
        if self._site is not None:
            await self._site.stop()  # what it has accepted goes on
        self._site = web.UnixSite(self._runner, self._path, backlog=BACKLOG)
        await self._site.start()

    async def _listen_again(self) -> None:
        try:
            await self._listen()
        except OSError as error:  # the directory is gone, too: tried again at the next look
            _log.debug("%s: %s", self._path, error)

    def _look(self) -> None:
        """A file that somebody removed is made again, or nobody new could connect."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(FILE_EVERY_S, self._look)
        if not os.path.exists(self._path) and (self._again is None or self._again.done()):
            self._again = loop.create_task(self._listen_again())

    async def close(self) -> None:
        """Cut what runs."""
        if self._timer is not None:
            self._timer.cancel()
        if self._again is not None:
            await asyncio.wait([self._again])
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        size = request.content_length or 0
        if self._held_bytes and self._held_bytes + size > self._limits.buffered_bytes:
            return _of_problem(Problem(ErrorKind.MEMORY, retry_after_s=RETRY_S))
        self.active += 1
        self._held_bytes += size
        try:
            return await self._outcome(request)
        finally:
            self.active -= 1
            self._held_bytes -= size
            if not self.active:
                self._on_idle()

    async def _outcome(self, request: web.Request) -> web.StreamResponse:
        hooked = self._routes.get(request.headers.get(ROUTE_HEADER, ""))
        if hooked is None:
            return _of_problem(Problem(ErrorKind.UNKNOWN_ROUTE))
        try:
            return await self._run(hooked, request)
        except _Unsent as error:
            return web.Response(status=503, headers={UNSENT_HEADER: "1"}, text=str(error))
        except _Lost as error:
            _log.warning("%s", error)
            _cut(request)
            return web.Response(status=502)
        except _Late:
            text = f"response_generator of {hooked.route} took over {self._timeout_s:g} s"
            _log.error("%s (hooks.timeout_s)", text)
            return _failed(request, Problem(ErrorKind.HOOK_TIMEOUT, text))
        except NoPlace as error:
            return _failed(request, Problem(ErrorKind.HOOK_TIMEOUT, str(error)))
        except _BrokeOff as error:
            return _failed(request, Problem(ErrorKind.MODEL_FAILED, str(error)))
        except Exception as error:  # whatever user code raises
            body, headers = await _sent(request)
            refused = calls.refusal(0, hooked.route, error, body, headers)
            extra = calls.extra_of(refused)
            return _failed(request, Problem(KINDS[refused.kind], refused.message, extra=extra))

    async def _run(self, hooked: Hooked, request: web.Request) -> web.StreamResponse:
        payload = self._redeem(request.headers.get(TICKET_HEADER, ""))
        if payload is None:
            payload = calls.read(hooked, await request.read())
        handler = hooked.handler
        if handler.remote_function is not None:
            result = await _guarded(self._functions.call(hooked, payload))
            try:
                return web.json_response({"result": result})
            except (TypeError, ValueError) as error:
                raise BadHook(f"remote_function returned what is no JSON: {error}") from error
        response = await self._ask_model(request, handler.endpoint, payload)
        try:
            answer = await self._watched(
                handler.generate_client_response(request, response), response
            )
        except aiohttp.ClientError as error:
            if response.content.exception() is None:
                raise  # of another server that the hook speaks to
            text = f"the model server broke off: {type(error).__name__}"
            raise _BrokeOff(text) from error
        finally:
            response.release()
        if not isinstance(answer, web.StreamResponse):
            what = type(answer).__name__
            raise BadHook(f"response_generator returned {what}, not a web.Response")
        if answer.prepared and answer._req is not request:
            raise BadHook("response_generator returned a response that was sent before")
        if not answer.prepared:  # what was copied from the model server's may not mean this one
            for name in _OF_A_CONNECTION:
                answer.headers.popall(name, None)
        return answer

    async def _ask_model(
        self, request: web.Request, endpoint: str, payload: ApiPayload
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        body, headers = calls.wire_form(payload)
        kind = headers.decode().partition(":")[2].strip()
        # a pattern's own path as it came: taken apart and written anew it could mean another one
        target = request.rel_url.raw_path if is_pattern(endpoint) else endpoint
        url = URL(self._model_url.rstrip("/") + target, encoded=is_pattern(endpoint))
        asked = _Asked()
        try:
            return await self._session.post(
                url, data=body, headers={"content-type": kind, **_PLAIN}, trace_request_ctx=asked
            )
        except aiohttp.ClientConnectionError as error:
            if not asked.redirected and _not_reached(error):
                raise _Unsent(f"the model server takes no connections: {error}") from error
            raise _Lost(f"no response from the model server: {error}") from error

    async def _watched(self, work: Any, response: aiohttp.ClientResponse) -> Any:
        """Wait for a hook for as long as the model server may still send something.

        Raises _Late; the hook is cancelled.
        """
        task = asyncio.ensure_future(_guarded(work))
        try:
            content, clock = response.content, asyncio.get_running_loop().time
            seen, since = (-1, False), clock()
            while not task.done():
                now = (content.total_bytes, content.at_eof())
                if now != seen:
                    seen, since = now, clock()
                limit_s = self._timeout_s if content.at_eof() else (self._idle_s or math.inf)
                if clock() - since > limit_s:
                    raise _Late
                await asyncio.wait([task], timeout=LOOK_EVERY_S)
        except BaseException:
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
            raise
        return task.result()


async def _sent(request: web.Request) -> tuple[bytes, list[str]]:
    """What the client sent, body and headers. A body that the file took away: what is no JSON."""
    body = b""
    with suppress(Exception):  # whatever became of it
        body = await request.read()
    return body or b"?", list(request.headers.values())


async def _guarded(work: Any) -> Any:
    """What exits in a hook costs its own request, not the file that everyone's hooks are in."""
    try:
        return await work
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # its client has left
        raise BadHook(f"it raised {type(error).__name__}") from error


class _Late(Exception):
    """The hook has had its time. Not a TimeoutError, which a hook may raise itself."""


class _BrokeOff(Exception):
    """The model server left in the middle of its response."""


class _Unsent(Exception):
    """The model server was not there."""


class _Lost(Exception):
    """The model server left before it answered, or it is not known whether it was asked."""


class _Asked:
    """One request to the model server. ``redirected``: it was taken, and sent elsewhere."""

    redirected = False


async def _on_redirect(session: object, context: Any, params: object) -> None:
    context.trace_request_ctx.redirected = True


def _not_reached(error: aiohttp.ClientConnectionError) -> bool:
    """It never got a connection, and that is the model server's fault, not a lack of ours."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return True
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno in _NOT_THERE


def _failed(request: web.Request, problem: Problem) -> web.StreamResponse:
    """The typed answer, or the end of a response that has begun."""
    if request._payload_writer is not None and request._payload_writer.output_size:
        _cut(request)
    return _of_problem(problem)


def _of_problem(problem: Problem) -> web.Response:
    after = {} if problem.retry_after_s is None else {"retry-after": f"{problem.retry_after_s:.0f}"}
    return web.Response(
        status=problem.status, body=problem.body(), content_type="application/json", headers=after
    )


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
