"""Runs remote functions, the code that stands in for a model server, and says how many at once.

Law: no more calls of a route run at once than it has places, and serial routes share one place. A
call has its place until it has really ended: a coroutine is cancelled with its request, a plain
function cannot be, so its thread goes on, and keeps the place, when its client has left. Who finds
no place within ``wait_s`` is told so (``NoPlace``).

A remote function may take as long as a model does: it has no deadline of its own, but its
request's. Its threads are daemons, so one that never returns keeps nothing alive; all but one end
when they have had nothing to do for a while. Everything lives on one loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from ingress.hooks.calls import BadHook
from ingress.hooks.handlers import MAX_PLAIN, Hooked, is_plain
from ingress.hooks.payload import ApiPayload
from ingress.hooks.threads import DaemonThread

#: Seconds after which a thread without work ends. The last one stays: what libraries keep for each
#: thread is made once where requests come one at a time.
IDLE_S = 60.0
#: What a function returned, or what it raised.
_Outcome = tuple[Any, BaseException | None]


class NoPlace(Exception):
    """As many calls as may run do not return. The text is for the client."""


class RemoteFunctions:
    """Every remote function of a file.

    ``wait_s``: seconds that a call may wait for its place. ``idle_s``: see ``IDLE_S``.
    """

    def __init__(self, wait_s: float, idle_s: float = IDLE_S) -> None:
        self._wait_s = wait_s
        self._idle_s = idle_s
        self._serial = asyncio.Semaphore(1)
        self._places: dict[str, asyncio.Semaphore] = {}
        #: threads without work, and since when; the longest idle first, the last is used next
        self._idle: list[tuple[DaemonThread, float]] = []
        self._timer: asyncio.TimerHandle | None = None
        #: thread → where its outcome is waited for
        self._running: dict[DaemonThread, asyncio.Future[_Outcome]] = {}

    async def call(self, hooked: Hooked, payload: ApiPayload) -> Any:
        """The function's result. Raises NoPlace, and what user code raises."""
        params = payload.generate_payload_json()
        if not isinstance(params, dict):
            raise BadHook("the payload of a remote_function is no object: it needs keywords")
        handler = hooked.handler
        function = handler.remote_function
        if not is_plain(function):
            if handler.allow_parallel_requests:
                return await _awaited(handler.call_remote_dispatch_function(params))
            await self._enter(self._serial)
            try:
                return await _awaited(handler.call_remote_dispatch_function(params))
            finally:
                self._serial.release()
        assert function is not None
        place = self._place_of(hooked)
        await self._enter(place)
        future: asyncio.Future[_Outcome] | None = None
        try:
            future = self._begin(partial(function, **params))
            await asyncio.wait([future])
            result, error = future.result()
            if error is not None:
                raise error
            return await _awaited(result)
        finally:
            if future is None or future.done():
                place.release()
            else:  # nobody waits for it any more, and nothing can stop it
                future.add_done_callback(partial(_unheard, place))

    def _place_of(self, hooked: Hooked) -> asyncio.Semaphore:
        if not hooked.handler.allow_parallel_requests:
            return self._serial
        return self._places.setdefault(hooked.route, asyncio.Semaphore(MAX_PLAIN))

    async def _enter(self, place: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await place.acquire()
        except TimeoutError:
            text = "functions of worker.py that began before this request have not returned within"
            raise NoPlace(f"{text} {self._wait_s:g} s") from None

    def _begin(self, work: Callable[[], Any]) -> asyncio.Future[_Outcome]:
        loop = asyncio.get_running_loop()
        thread = self._idle.pop()[0] if self._idle else DaemonThread(self._finished, loop)
        future = self._running[thread] = loop.create_future()
        thread.run(partial(_outcome_of, work))
        return future

    def _finished(self, thread: DaemonThread, outcome: _Outcome) -> None:
        loop = asyncio.get_running_loop()
        self._idle.append((thread, loop.time()))
        self._running.pop(thread).set_result(outcome)
        if self._timer is None and len(self._idle) > 1:
            self._timer = loop.call_later(self._idle_s, self._thin_out)

    def _thin_out(self) -> None:
        """End who has been idle for so long, and look again when the next will have been."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while len(self._idle) > 1:
            thread, since = self._idle[0]
            left_s = since + self._idle_s - loop.time()
            if left_s > 0:
                self._timer = loop.call_later(left_s, self._thin_out)
                return
            del self._idle[0]
            thread.end()


async def _awaited(result: Any) -> Any:
    while inspect.isawaitable(result):
        result = await result
    return result


def _outcome_of(work: Callable[[], Any]) -> _Outcome:
    try:
        return work(), None
    except BaseException as error:  # whatever user code raises, sys.exit among it
        return None, error


def _unheard(place: asyncio.Semaphore, future: asyncio.Future[_Outcome]) -> None:
    place.release()
    result, _ = future.result()
    if inspect.iscoroutine(result):
        result.close()
