"""Remote functions: as many at once as a route has places, whoever has left meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ingress.hooks.calls import BadHook
from ingress.hooks.config import HandlerConfig, WorkerConfig
from ingress.hooks.describe import describe
from ingress.hooks.functions import NoPlace, RemoteFunctions
from ingress.hooks.handlers import MAX_PLAIN, Hooked, build
from tests.kit.wait import wait_until_async


class Scene:
    """Routes whose functions wait for ``gate``; ``running`` and ``most`` count them."""

    def __init__(self, idle_s: float = 60.0) -> None:
        self.gate = threading.Event()
        self.gate_of_coroutines = asyncio.Event()
        self.lock = threading.Lock()
        self.running = self.most = self.ended = 0
        self.names: set[str] = set()
        handlers = [
            HandlerConfig("/plain", remote_function=self.plain),
            HandlerConfig("/other", remote_function=self.plain),
            HandlerConfig("/threads", remote_function=self.plain, allow_parallel_requests=True),
            HandlerConfig("/lazy", remote_function=lambda **params: self.coroutine(**params)),
            HandlerConfig("/coroutine", remote_function=self.coroutine),
            HandlerConfig("/coroutines", remote_function=self.coroutine,
                          allow_parallel_requests=True),
            HandlerConfig("/raising", remote_function=self.raising),
        ]  # fmt: skip
        self.routes = build(WorkerConfig(handlers=handlers))
        self.functions = RemoteFunctions(0.3, idle_s)

    def plain(self, n: int = 0, hold: bool = False) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.names.add(threading.current_thread().name)
        if hold:
            self.gate.wait(60)
        with self.lock:
            self.running -= 1
            self.ended += 1
        return n

    async def coroutine(self, n: int = 0, hold: bool = False) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if hold:
                await self.gate_of_coroutines.wait()
        finally:
            await asyncio.sleep(0.05)  # cleaning up is part of it
            self.running -= 1
        return n

    def raising(self, what: str) -> None:
        raise {"exit": SystemExit(3), "stop": StopIteration(), "late": TimeoutError()}[what]

    def open(self) -> None:
        self.gate.set()
        self.gate_of_coroutines.set()

    def call(self, route: str, **params: Any) -> asyncio.Task[Any]:
        hooked: Hooked = self.routes[route]
        payload = hooked.handler.payload_cls().from_json_msg(params)
        return asyncio.ensure_future(self.functions.call(hooked, payload))


def play(script: Callable[[Scene], Awaitable[None]], idle_s: float = 60.0) -> None:
    async def main() -> None:
        scene = Scene(idle_s)
        try:
            await script(scene)
        finally:
            scene.open()
            await wait_until_async(lambda: scene.running == 0)

    asyncio.run(main())


def test_a_plain_function_keeps_its_place_when_its_client_has_left() -> None:
    async def script(scene: Scene) -> None:
        left = scene.call("/plain", hold=True)
        await wait_until_async(lambda: scene.running == 1)
        left.cancel()
        await asyncio.wait([left])
        assert left.cancelled(), "its request ends at once"
        with pytest.raises(NoPlace, match=r"within 0\.3 s"):
            await scene.call("/other")
        waiting = scene.call("/plain", n=7)
        await asyncio.sleep(0)
        scene.open()
        assert await waiting == 7
        assert (scene.most, scene.ended) == (1, 2)
        assert scene.names == {"hook"}

    play(script)


def test_serial_functions_of_all_kinds_never_overlap() -> None:
    async def script(scene: Scene) -> None:
        for route in ("/coroutine", "/lazy"):
            left = scene.call(route, hold=True)
            await wait_until_async(lambda: scene.running == 1)
            left.cancel()
            assert await scene.call("/plain", n=1) == 1
            assert left.cancelled()
        results = [scene.call(r, n=2) for r in ("/coroutine", "/plain", "/lazy", "/other")]
        assert await asyncio.gather(*results) == [2, 2, 2, 2]
        assert scene.most == 1

    play(script)


def test_threads_have_a_bound_and_coroutines_none() -> None:
    async def script(scene: Scene) -> None:
        held = [scene.call("/threads", hold=True) for _ in range(MAX_PLAIN)]
        await wait_until_async(lambda: scene.running == MAX_PLAIN)
        before = threading.active_count()
        for task in held[:3]:
            task.cancel()
        more = await asyncio.gather(
            *(scene.call("/threads") for _ in range(5)), return_exceptions=True
        )
        assert [type(each) for each in more] == [NoPlace] * 5
        assert threading.active_count() == before
        assert await scene.call("/plain", n=3) == 3, "another route has places of its own"
        scene.most = 0
        many = [scene.call("/coroutines", hold=True) for _ in range(2 * MAX_PLAIN)]
        await wait_until_async(lambda: scene.running == 3 * MAX_PLAIN)
        scene.open()
        await asyncio.gather(*held[3:], *many)
        assert await scene.call("/threads", n=4) == 4
        assert threading.active_count() <= before + 1, "idle ones are used again"

    play(script)


def test_threads_end_when_they_have_nothing_to_do_but_one() -> None:
    async def script(scene: Scene) -> None:
        before = threading.active_count()
        for _ in range(2):
            held = [scene.call("/threads", hold=True) for _ in range(20)]
            await wait_until_async(lambda: scene.running == 20)
            assert threading.active_count() == before + 20
            scene.open()
            await asyncio.gather(*held)
            await wait_until_async(lambda: threading.active_count() == before + 1)
            scene.gate.clear()
        for n in range(50):
            assert await scene.call("/threads", n=n) == n
            assert threading.active_count() == before + 1

    play(script, idle_s=0.1)


def test_what_a_function_raises_comes_back_and_its_place_is_free() -> None:
    async def script(scene: Scene) -> None:
        for what, error in (("exit", SystemExit), ("late", TimeoutError), ("stop", RuntimeError)):
            began = time.monotonic()
            task = scene.functions.call(
                scene.routes["/raising"],
                scene.routes["/raising"].handler.payload_cls().from_json_msg({"what": what}),
            )
            with pytest.raises(error):
                await task
            assert time.monotonic() - began < 0.3
        hooked = scene.routes["/plain"]
        listed: Any = hooked.handler.payload_cls()
        with pytest.raises(BadHook, match="keywords"):
            await scene.functions.call(hooked, listed([1]))

    play(script)


def test_the_queue_runs_no_more_than_there_are_places() -> None:
    async def script(scene: Scene) -> None:
        values = describe(WorkerConfig(), scene.routes, {}, "unix:///hosted")
        assert {route["path"]: route["concurrency"] for route in values["route"]} == {
            "/plain": 1, "/other": 1, "/threads": MAX_PLAIN, "/lazy": 1, "/coroutine": 1,
            "/coroutines": 0, "/raising": 1,
        }  # fmt: skip

    play(script)
