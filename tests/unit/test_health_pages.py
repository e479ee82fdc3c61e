"""The admin pages over real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from reporter.health_pages import HealthPages, HealthPagesError, View

Get = Callable[[str], Awaitable[tuple[int, str, str]]]


class Worker:
    """What the pages look at."""

    def __init__(self) -> None:
        self.view = View(live=True, ready=False, reason="the model is loading")

    def pages(self, port: int = 0) -> HealthPages:
        return HealthPages("127.0.0.1", port, lambda: self.view, lambda: b"lighterman_drift 0\n")


def visit(worker: Worker, talk: Callable[[Get, HealthPages], Awaitable[None]]) -> None:
    async def main() -> None:
        pages = worker.pages()
        await pages.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def get(path: str) -> tuple[int, str, str]:
                    async with session.get(f"http://127.0.0.1:{pages.port}{path}") as answer:
                        return answer.status, answer.content_type, await answer.text()

                await talk(get, pages)
        finally:
            await pages.stop()
            await pages.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_readiness_says_why_not() -> None:
    worker = Worker()

    async def talk(get: Get, pages: HealthPages) -> None:
        not_ready = '{"live":true,"ready":false,"reason":"the model is loading","details":{}}'
        assert await get("/healthz") == (200, "application/json", not_ready)
        assert await get("/readyz") == (503, "application/json", not_ready)
        worker.view = View(live=True, ready=True, details={"queue": 3})
        ready = '{"live":true,"ready":true,"reason":"","details":{"queue":3}}'
        assert await get("/readyz") == (200, "application/json", ready)
        worker.view = View(live=False, ready=True, reason="ingress-0 failed")
        assert (await get("/healthz"))[0] == 503
        assert (await get("/readyz"))[0] == 503

    visit(worker, talk)


def test_metrics_and_unknown_pages() -> None:
    async def talk(get: Get, pages: HealthPages) -> None:
        assert await get("/metrics") == (200, "text/plain", "lighterman_drift 0\n")
        assert (await get("/"))[0] == 404

    visit(Worker(), talk)


def test_a_port_in_use_is_named_with_the_setting() -> None:
    async def talk(get: Get, pages: HealthPages) -> None:
        second = Worker().pages(pages.port)
        with pytest.raises(HealthPagesError, match=rf":{pages.port} .*worker\.admin_port"):
            await second.start()
        await second.stop()

    visit(Worker(), talk)
