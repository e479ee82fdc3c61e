"""The hands of ingress between two real ends: clients at the port, an adapter and a reporter that
say what the test wants."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from backend_adapter.messages import Answer, Chunk, Failed, Head, Submit, ToAdapter
from ingress.errors import ErrorKind, Problem, sse_error
from ingress.process import EVENTS_SOCKET, JOBS_SOCKET, Ingress
from reporter.messages import Ack, Events, PublicKey, ToReporter
from supervisor import wire
from supervisor.child import Runtime
from supervisor.client_port import ClientPort, borrowed
from supervisor.ports import free_port
from supervisor.settings import AuthSettings, RouteSettings, Settings, WorkerSettings
from supervisor.settings_sources import Handoff
from tests.kit.wait import wait_until_async

NAME = "ingress-0"
BODY = json.dumps({"payload": {}}).encode()
SSE = b"content-type: text/event-stream\r\n"


class Scene:
    """``submits`` is what the adapter was given, ``batches`` what the reporter was."""

    def __init__(self, directory: Path) -> None:
        settings = Settings(
            worker=WorkerSettings(host="127.0.0.1"),
            auth=AuthSettings(mode="none"),
            route=[RouteSettings(path="/a"), RouteSettings(path="/once", redeliver=False)],
        )
        self.runtime = Runtime(NAME, Handoff("run", str(directory), os.getpid(), settings))
        port = ClientPort("127.0.0.1", free_port("127.0.0.1"))
        self.ingress = Ingress(self.runtime, borrowed(map(os.dup, port.fds)))
        port.close()
        self.submits: list[Submit] = []
        self.batches: list[Events] = []
        self.acking = True
        self.unexpected: list[dict[str, Any]] = []
        self.jobs: wire.Server
        self.events: wire.Server

    def open_jobs(self) -> None:
        self.jobs = wire.Server(self.runtime.address(JOBS_SOCKET), ToAdapter, self._on_jobs)

    async def __aenter__(self) -> Scene:
        self.runtime.loop.set_exception_handler(lambda loop, c: self.unexpected.append(c))
        self.open_jobs()
        self.events = wire.Server(self.runtime.address(EVENTS_SOCKET), ToReporter, self._on_events)
        await self.ingress.start()
        await wait_until_async(lambda: NAME in self.jobs.peers and NAME in self.events.peers)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for timer in self.runtime._timers.values():
            timer.cancel()
        await self.ingress.stop()
        await wait_until_async(lambda: self.ingress._server.connections == 0)
        self.jobs.close()
        self.events.close()
        assert self.unexpected == []

    def _on_jobs(self, peer: str, messages: list[Any]) -> None:
        self.submits += [message for message in messages if isinstance(message, Submit)]

    def _on_events(self, peer: str, messages: list[Any]) -> None:
        for message in messages:
            self.batches.append(message)
            if self.acking:
                self.events.send(peer, Ack(message.seq, message.epoch))

    def answer(self, *messages: Any) -> None:
        for message in messages:
            self.jobs.send(NAME, message)

    async def request(self, path: str = "/a") -> tuple[int, asyncio.Task[bytes]]:
        """Send one request; returns the job's id and the bytes that the client will have read."""
        known = len(self.submits)
        task = asyncio.create_task(self._read(path))
        await wait_until_async(lambda: len(self.submits) > known, what="the job")
        return self.submits[-1].id, task

    async def _read(self, path: str) -> bytes:
        port = self.ingress.beat().gauges["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        try:
            head = b"POST %b HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (path.encode(), len(BODY)) + BODY)
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()
            await writer.wait_closed()

    @property
    def totals(self) -> Any:
        return self.ingress._ledger.totals


def play(directory: Path, scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Scene(directory) as stage:
            await scene(stage)

    uvloop.run(main())


def error_of(answer: bytes) -> dict[str, Any]:
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2])["error"])


def test_a_key_that_is_none_changes_nothing(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        async def another_batch() -> Any:
            known = len(stage.batches)
            stage.ingress._ledger.refuse("unknown_route")
            await wait_until_async(lambda: len(stage.batches) > known)
            return stage.batches[-1]

        await wait_until_async(lambda: len(stage.batches) > 0)
        stage.acking = False
        last = await another_batch()
        stage.events.send(NAME, PublicKey("<html>no key</html>"))
        stage.events.send(NAME, Ack(last.seq, last.epoch + 1))  # of another life of this process
        stage.events.send(NAME, PublicKey("<html>no key</html>"))
        after = await another_batch()
        unacked = [events.seq for events in stage.ingress._ledger.unacked()]
        assert {last.seq, after.seq} <= {*unacked}
        last = stage.batches[-1]
        stage.events.send(NAME, Ack(last.seq, last.epoch))
        await wait_until_async(lambda: not stage.ingress._ledger.unacked())

    play(tmp_path, scene)


def test_what_is_not_answered_by_the_drain_deadline_is_told_so_and_accounted(
    tmp_path: Path,
) -> None:
    async def scene(stage: Scene) -> None:
        _, waiting = await stage.request()
        begun, streaming = await stage.request()
        stage.answer(Head(begun, 200, SSE, 1.0), Chunk(begun, b"data: 1\n\n"))
        await wait_until_async(lambda: stage.ingress._admission.jobs[begun].begun)
        await stage.ingress.drain(0.2)
        answer = await waiting
        assert answer.startswith(b"HTTP/1.1 503 ") and error_of(answer)["kind"] == "draining"
        answer = await streaming
        assert b'"kind":"draining"' in answer and not answer.endswith(b"0\r\n\r\n")
        totals = stage.batches[-1].totals
        assert (totals.received, totals.errored) == (200.0, 200.0)

    play(tmp_path, scene)


def test_an_error_never_completes_a_response_of_known_length(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        job, reading = await stage.request()
        event = sse_error(Problem(ErrorKind.MODEL_FAILED, "died"))
        for padding in (0, 2):  # with, and without, what ends a broken event
            size = len(event) + padding
            stage.answer(Head(job, 200, SSE, 1.0, size), Failed(job, "model_failed", "died"))
            head, _, body = (await reading).partition(b"\r\n\r\n")
            assert b"content-length: %d" % size in head and len(body) < size
            job, reading = await stage.request()
        stage.answer(Answer(job, 200, b"", 1.0, b"ok"))
        assert (await reading).endswith(b"ok")

    play(tmp_path, scene)


def test_the_error_event_is_apart_from_the_event_that_was_cut(tmp_path: Path) -> None:
    async def scene(stage: Scene) -> None:
        job, reading = await stage.request()
        stage.answer(Head(job, 200, SSE, 1.0), Chunk(job, b'data: {"tok'))
        stage.answer(Failed(job, "model_failed", "died"))
        body = (await reading).replace(b"\r\n", b"|")
        lines = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
        assert any(line.startswith(b'data: {"error"') for line in lines), body

    play(tmp_path, scene)


@pytest.mark.parametrize("path", ["/a", "/once"])
def test_a_new_adapter_gets_what_may_run_again(tmp_path: Path, path: str) -> None:
    async def scene(stage: Scene) -> None:
        job, reading = await stage.request(path)
        begun, streaming = await stage.request()
        stage.answer(Head(begun, 200, SSE, 1.0), Chunk(begun, b"data: 1\n\n"))
        await wait_until_async(lambda: stage.ingress._admission.jobs[begun].begun)
        stage.submits.clear()
        stage.jobs.close()
        stage.open_jobs()
        assert b'"kind":"adapter_down"' in await streaming
        if path == "/a":
            await wait_until_async(lambda: [s.id for s in stage.submits] == [job])
            stage.answer(Answer(job, 200, b"", 1.0, b"ok"), Answer(job, 200, b"", 1.0, b"again"))
            assert (await reading).endswith(b"\r\n\r\nok")
        else:
            assert error_of(await reading)["kind"] == "adapter_down"
            assert stage.submits == []
        totals = stage.totals
        assert totals.received == 200.0 == totals.served + totals.errored

    play(tmp_path, scene)
