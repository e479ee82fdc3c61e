"""The engine's key is asked for before an engine that may be another one hears of this worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from reporter.engine_client import EngineClient
from reporter.key_fetcher import KeyFetcher
from reporter.keyring import SUSPECT_EVERY_S
from supervisor.demo.signing import Signer
from supervisor.settings import EngineSettings


class Engine:
    """One that has a key, until it is told otherwise."""

    def __init__(self) -> None:
        self.pem = Signer.generate("url").public_pem
        self.asked = 0
        self.status = 200

    async def pubkey(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.pem, status=self.status)


def play(scene: Callable[[Engine, KeyFetcher, list[str], web.TCPSite], Awaitable[None]]) -> None:
    async def main() -> None:
        engine, keys = Engine(), list[str]()
        app = web.Application()
        app.router.add_get("/pubkey/", engine.pubkey)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        client = EngineClient(EngineSettings(addresses=[url]), 1, lambda text: text)
        fetcher = KeyFetcher([url], client, keys.append, lambda reason: None)
        try:
            assert fetcher.ring.step(0.0) == url
            await fetcher.fetch(url)
            assert keys == [engine.pem]
            await scene(engine, fetcher, keys, site)
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_key_that_nobody_doubts_is_not_asked_for() -> None:
    async def scene(engine: Engine, fetcher: KeyFetcher, keys: list[str], site: object) -> None:
        assert await fetcher.renew(fetcher.ring._addresses[0]) is None
        assert engine.asked == 1

    play(scene)


def test_another_engines_key_is_known_before_that_hears_of_anything() -> None:
    async def scene(engine: Engine, fetcher: KeyFetcher, keys: list[str], site: object) -> None:
        address = fetcher.ring._addresses[0]
        fetcher.ring.doubt()
        engine.pem = Signer.generate("url").public_pem
        assert await fetcher.renew(address) is None
        assert keys[1:] == [engine.pem] == [fetcher.ring.pem]
        assert await fetcher.renew(address) is None
        assert engine.asked == 2

    play(scene)


def test_an_engine_without_a_key_may_hear_of_us_and_is_asked_again_beside_that() -> None:
    async def scene(engine: Engine, fetcher: KeyFetcher, keys: list[str], site: object) -> None:
        fetcher.ring.doubt()
        engine.status = 500
        assert await fetcher.renew(fetcher.ring._addresses[0]) is None
        assert not fetcher.ring.stale
        assert fetcher.ring.pem == engine.pem
        assert fetcher.ring.wake_at() <= SUSPECT_EVERY_S

    play(scene)


def test_an_engine_that_is_away_need_not_be_told() -> None:
    async def scene(
        engine: Engine, fetcher: KeyFetcher, keys: list[str], site: web.TCPSite
    ) -> None:
        fetcher.ring.doubt()
        await site.stop()
        await fetcher._engine.close()
        error = await fetcher.renew(fetcher.ring._addresses[0])
        assert error is not None
        assert error.kind == "unreachable"
        assert fetcher.ring.stale

    play(scene)


def test_where_no_key_is_known_there_is_nothing_to_doubt() -> None:
    client = EngineClient(EngineSettings(addresses=[]), 1, lambda text: text)
    fetcher = KeyFetcher([], client, lambda pem: None, lambda reason: None)
    fetcher.ring.doubt()
    assert not fetcher.ring.stale
