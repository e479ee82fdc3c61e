"""The reporter's hands in this process: what it makes of what the others tell it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from reporter.messages import FromReporter, ModelReport
from reporter.process import EVENTS_SOCKET, Reporter
from supervisor import wire
from supervisor.child import Runtime
from supervisor.messages import ChildNote, ChildState, ModelState
from supervisor.ports import free_port
from supervisor.settings import AuthSettings, EngineSettings, Settings, WorkerSettings
from supervisor.settings_sources import Handoff
from tests.kit.wait import wait_until_async


class Scene:
    """A reporter, an engine that accepts everything, and the adapter's end of the events."""

    def __init__(
        self, reporter: Reporter, adapter: wire.Client, engine: web.TCPSite, told: list[Any]
    ) -> None:
        self.reporter = reporter
        self.adapter = adapter
        self.engine = engine
        self.told = told

    async def model(self, report: ModelReport) -> None:
        """The adapter says this of the model server; returns when the reporter knows."""
        await wait_until_async(lambda: self.adapter.send(report), what="the reporter to listen")
        await self.until_told(lambda told: told["error_msg"] == report.error, "the model's report")

    async def until_told(self, good: Callable[[Any], bool], what: str) -> None:
        """Wait until a report that is made from now on is like this."""
        seen = len(self.told)
        self.reporter._outbox.changed()
        await wait_until_async(lambda: any(map(good, self.told[seen:])), what=what)


def play(
    tmp_path: Path,
    scene: Callable[[Scene], Awaitable[None]],
    admin_port: int = 0,
    *,
    engine_listens: bool = True,
) -> None:
    async def main() -> None:
        told: list[Any] = []

        async def take(request: web.Request) -> web.Response:
            if request.path == "/worker_status/":
                told.append(msgspec.json.decode(await request.read()))
            return web.json_response({})

        app = web.Application()
        app.router.add_post("/{page:.*}", take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        engine = web.TCPSite(runner, "127.0.0.1", port := free_port("127.0.0.1"))
        if engine_listens:
            await engine.start()
        settings = Settings(
            worker=WorkerSettings(
                state_dir=str(tmp_path / "state"), admin_port=admin_port, public_url="http://w"
            ),
            auth=AuthSettings(mode="none"),
            engine=EngineSettings(addresses=[f"http://127.0.0.1:{port}"], retry_s=30.0),
        )
        runtime = Runtime("reporter", Handoff("run", str(tmp_path), os.getpid(), settings))
        reporter = Reporter(runtime)
        await reporter.start()
        adapter = wire.Client(
            runtime.address(EVENTS_SOCKET), "backend_adapter", FromReporter, lambda _: None
        )
        try:
            await scene(Scene(reporter, adapter, engine, told))
        finally:
            adapter.close()
            for timer in runtime._timers.values():
                timer.cancel()
            for task in list(runtime._aside):
                task.cancel()
            await asyncio.gather(*runtime._aside, return_exceptions=True)
            await reporter.stop()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(main(), 90))


def test_the_death_of_an_earlier_model_server_does_not_overrule_the_present_ones_report(
    tmp_path: Path,
) -> None:
    """The two come over different sockets, and in any order when this process was held up."""

    async def scene(play: Scene) -> None:
        await play.model(ModelReport(True, "", 2.0, 2, 50.0))
        died = ModelState(ChildState.BACKOFF, 1, reason="exit 3")
        play.reporter.on_control(died)
        await play.until_told(lambda told: not told["error_msg"], "a report without an error")
        assert play.reporter._view().ready
        play.reporter.on_control(msgspec.structs.replace(died, generation=2))
        await play.until_told(lambda told: "exit 3" in told["error_msg"], "its own death")
        assert not play.reporter._view().ready

    play(tmp_path, scene)


def test_the_engine_hears_of_the_end_when_the_door_begins_to_close(tmp_path: Path) -> None:
    """It would send clients to a port that is closed for as long as the drain lasts."""

    async def scene(play: Scene) -> None:
        await play.model(ModelReport(True, "", 2.0, 1, 50.0))
        play.reporter.on_control(
            ChildNote("ingress-0", ChildState.STOPPING, "stop asked for", restarts=0)
        )
        await play.until_told(lambda told: "stop asked for" in told["error_msg"], "the stop")
        assert play.reporter._view().live  # nothing is broken

    play(tmp_path, scene)


def test_a_worker_that_stops_is_not_ready(tmp_path: Path) -> None:
    """Whoever watches /readyz would send it requests for as long as the drain lasts."""

    async def scene(play: Scene) -> None:
        await play.model(ModelReport(True, "", 2.0, 1, 50.0))
        await wait_until_async(lambda: play.reporter._view().ready, what="the readiness")
        play.reporter.on_control(
            ChildNote("worker", ChildState.STOPPING, "drain asked for", restarts=0)
        )
        view = play.reporter._view()
        assert (view.live, view.ready) == (True, False)
        assert view.reason == "the worker is stopping: drain asked for"

    play(tmp_path, scene)


def test_an_engine_that_starts_after_the_reporter_hears_of_it_soon(tmp_path: Path) -> None:
    """The worker is ready when the engine knows; the pause between two tries would delay that."""

    async def scene(play: Scene) -> None:
        status = play.reporter._outbox.status
        await wait_until_async(lambda: status.failed, what="a post that nobody takes")
        assert not play.told
        await play.engine.start()
        play.reporter.on_control(
            ChildNote("engine", ChildState.READY, "", restarts=0, generation=1)
        )
        await wait_until_async(lambda: play.told, 5.0, "the engine to hear of the worker")

    play(tmp_path, scene, engine_listens=False)


def test_pages_that_cannot_be_served_are_told_once_and_tried_again(tmp_path: Path) -> None:
    """They are for people: an engine that counts the worker as broken for them helps nobody."""
    port = free_port("127.0.0.1")
    holder = socket.create_server(("127.0.0.1", port))

    def answered() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            return False
        return True

    async def scene(play: Scene) -> None:
        try:
            await wait_until_async(
                lambda: any("admin" in told["error_msg"] for told in play.told),
                what="the engine to hear of it",
            )
            await play.until_told(lambda told: not told["error_msg"], "a report without an error")
        finally:
            holder.close()
        await wait_until_async(answered, 60.0, "the pages")
        assert sum("admin" in told["error_msg"] for told in play.told) == 1

    play(tmp_path, scene, admin_port=port)
