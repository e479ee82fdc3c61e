"""The adapter's hands between two real ends: an ingress on the socket, a scripted model server."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from backend_adapter import run
from backend_adapter.hook_messages import HOSTED_SOCKET
from backend_adapter.messages import (
    Answer,
    Cancel,
    Cancelled,
    Chunk,
    Credit,
    End,
    Failed,
    FilePart,
    FromAdapter,
    Head,
    Rejected,
    Submit,
)
from backend_adapter.process import JOBS_SOCKET, Adapter
from supervisor import wire
from supervisor.child import Runtime
from supervisor.messages import ChildNote, ChildState, ModelState
from supervisor.ports import free_port
from supervisor.settings import HooksSettings, ModelSettings, QueueSettings, Settings
from supervisor.settings_sources import Handoff
from tests.kit.raw_server import Peer, RawServer, Script
from tests.kit.wait import wait_until_async

INF = float("inf")
TERMINAL = (Answer, End, Failed, Rejected)


class Scene:
    """``messages`` is what the ingress heard, in order."""

    def __init__(
        self, directory: Path, server: RawServer, health: str = "", hooks: str = "", **queue: Any
    ) -> None:
        settings = Settings(
            model=ModelSettings(url=server.url, health=health, probe_every_s=600.0),
            hooks=HooksSettings(file=hooks),
            queue=QueueSettings(**queue),
        )
        handoff = Handoff("run", str(directory), os.getpid(), settings)
        self.runtime = Runtime("backend_adapter", handoff)
        self.adapter = Adapter(self.runtime)
        self.messages: list[Any] = []
        self.went_down = 0
        self.ingress: wire.Client
        self._next_id = 0

    async def __aenter__(self) -> Scene:
        await self.adapter.start()
        self.ingress = wire.Client(
            self.runtime.address(JOBS_SOCKET), "ingress-0", FromAdapter, self.messages.extend
        )
        self.adapter.on_control(ModelState("external"))
        await wait_until_async(lambda: self.ingress.up and self.gauges["model_ready"])
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.ingress.close()
        for timer in self.runtime._timers.values():
            timer.cancel()
        for task in list(self.runtime._aside):
            task.cancel()
        await self.adapter.stop()

    @property
    def gauges(self) -> dict[str, Any]:
        return self.adapter.beat().gauges

    @property
    def capacity_running(self) -> int:
        """Requests that the measure of capacity believes to run."""
        return self.adapter._capacity._running

    def submit(self, **fields: Any) -> int:
        self._next_id += 1
        defaults: dict[str, Any] = {
            "path": "/x", "lane": "/x", "lane_limit": 0, "workload": 100.0, "credit": 262_144,
            "max_queue_time_s": INF, "expires_at": INF,
        }  # fmt: skip
        self.ingress.send(Submit(id=self._next_id, **defaults | fields))
        return self._next_id

    def heard(self, job_id: int) -> list[Any]:
        return [message for message in self.messages if message.id == job_id]

    def last(self, job_id: int) -> Any:
        heard = self.heard(job_id)
        return heard[-1] if heard else None

    def body(self, job_id: int) -> bytes:
        return b"".join(bytes(m.body) for m in self.heard(job_id) if isinstance(m, Chunk))

    async def end(self, job_id: int) -> Any:
        """The terminal message of a job, which is its last and its only one."""
        await wait_until_async(
            lambda: any(isinstance(m, TERMINAL) for m in self.heard(job_id)), what="the job's end"
        )
        heard = self.heard(job_id)
        assert [isinstance(m, TERMINAL) for m in heard] == [False] * (len(heard) - 1) + [True]
        return heard[-1]

    async def settled(self) -> None:
        """Nothing is held for any job."""
        await wait_until_async(
            lambda: (
                not self.adapter._runs.open
                and (self.gauges["waiting"], self.gauges["running"]) == (0, 0)
                and self.gauges["held_bytes"] == 0
                and self.capacity_running == 0
            ),
            what="everything to be let go of",
        )


def play(
    directory: Path, script: Script, scene: Callable[[Scene], Awaitable[None]], **queue: Any
) -> None:
    async def main() -> None:
        async with RawServer(script) as server, Scene(directory, server, **queue) as stage:
            await scene(stage)

    uvloop.run(main())


def status(code: int, delay_s: float = 0.0) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(delay_s)
            await peer.answer(b"{}", status=code)

    return script


@pytest.mark.parametrize(("code", "counts"), [(200, True), (422, False), (500, False)])
def test_a_refusal_of_the_model_server_is_no_capacity(
    tmp_path: Path, code: int, counts: bool
) -> None:
    async def scene(stage: Scene) -> None:
        for _ in range(3):
            answer = await stage.end(stage.submit(workload=2.0**40))
            assert answer.status == code
        await stage.settled()
        assert (stage.gauges["max_perf"] > 0) is counts

    play(tmp_path, status(code, 0.4), scene)


def test_an_unheard_of_status_never_reaches_a_client(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 099 Odd\r\ncontent-length: 5\r\n\r\nhello")
        await peer.hold()

    async def scene(stage: Scene) -> None:
        job = stage.submit()
        end = await stage.end(job)
        assert isinstance(end, Failed) and end.kind == "model_failed"
        assert len(stage.heard(job)) == 1
        await stage.settled()

    play(tmp_path, script, scene)


def test_a_request_that_ran_for_long_is_not_sent_again_behind_the_queues_back(
    tmp_path: Path,
) -> None:
    async def script(peer: Peer) -> None:
        if peer.number > 1:  # the first connection is the probe's
            await peer.request()
            await peer.answer()
            await peer.request()
            await asyncio.sleep(1.5)
            peer.reset()

    async def scene(stage: Scene) -> None:
        assert isinstance(await stage.end(stage.submit()), Answer)
        assert isinstance(await stage.end(stage.submit()), Answer)
        assert (stage.gauges["retried"], stage.gauges["connections_opened"]) == (1, 2)
        await stage.settled()

    play(tmp_path, script, scene)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_request_is_never_sent_more_often_than_is_allowed(tmp_path: Path, attempts: int) -> None:
    seen = []

    async def script(peer: Peer) -> None:
        while peer.number > 1:  # the first connection is the probe's
            _, body = await peer.request()
            if body == b"deadly":
                seen.append(peer.number)
                peer.reset()
                return
            await peer.answer()

    async def scene(stage: Scene) -> None:
        assert isinstance(await stage.end(stage.submit()), Answer)
        end = await stage.end(stage.submit(body=b"deadly"))
        assert isinstance(end, Failed) and end.kind == "model_failed"
        assert len(seen) == attempts
        await stage.settled()

    play(tmp_path, script, scene, max_attempts=attempts)


def test_a_credit_smaller_than_one_read_and_an_end_that_waits_for_it(tmp_path: Path) -> None:
    text = os.urandom(300_000)

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await peer.request()
            await peer.answer(text)
            await peer.hold()

    async def scene(stage: Scene) -> None:
        job = stage.submit(credit=4096)
        granted = 4096
        while granted < len(text):
            await wait_until_async(
                partial(lambda size: len(stage.body(job)) == size, granted), what="all that may go"
            )
            assert not any(isinstance(m, TERMINAL) for m in stage.heard(job))
            granted += 70_000
            stage.ingress.send(Credit(job, 70_000))
        assert isinstance(await stage.end(job), End)
        assert stage.body(job) == text
        assert stage.heard(job)[0] == Head(job, 200, b"", stage.heard(job)[0].started_at, len(text))
        stage.ingress.send(Credit(job, 1))  # after the end: nothing
        stage.ingress.send(Cancel(job))
        await stage.settled()
        await wait_until_async(lambda: stage.last(job) == Cancelled(job), what="the last word")

    play(tmp_path, script, scene)


def test_responses_that_nobody_reads_give_their_slots_free_only_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MAX_LEAVING", 1)
    text = b"x" * 70_000

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await peer.request()
            await peer.answer(text)
            await peer.hold()

    async def scene(stage: Scene) -> None:
        jobs = [stage.submit(credit=69_000) for _ in range(3)]
        await wait_until_async(lambda: all(len(stage.body(job)) == 69_000 for job in jobs))
        await wait_until_async(lambda: stage.gauges["running"] == 2, what="one to have left")
        assert stage.adapter._runs.leaving == 1
        leaving = [key[1] for key, each in stage.adapter._runs.open.items() if each._leaving]
        stays, cancelled = (job for job in jobs if job not in leaving)
        stage.ingress.send(Credit(stays, 10_000))
        assert isinstance(await stage.end(stays), End)
        assert stage.body(stays) == text
        await wait_until_async(lambda: stage.gauges["running"] == 1)
        stage.ingress.send(Cancel(cancelled))
        stage.ingress.send(Credit(leaving[0], 10_000))
        assert isinstance(await stage.end(leaving[0]), End)
        await stage.settled()
        assert stage.adapter._runs.leaving == 0

    play(tmp_path, script, scene)


def test_a_body_in_a_file_is_sent_on_and_again_and_its_loss_is_told(tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    (tmp_path / "body").write_bytes(b"head" + body + b"tail")
    part = FilePart(str(tmp_path / "body"), 4, len(body))
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        if peer.number == 2:
            await peer.reader.readexactly(1_000_000)
            peer.reset()  # in the midst of the body: it is sent again
        elif peer.number > 2:
            got.append((await peer.request())[1])
            await peer.answer(b"fine")
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.answer(b"early", status=413)  # and the rest of the body is not read
            await peer.hold()

    async def scene(stage: Scene) -> None:
        answer = await stage.end(stage.submit(file=part))
        assert isinstance(answer, Answer) and answer.body == b"fine"
        assert got == [body]
        assert stage.gauges["retried"] == 1
        opened = stage.gauges["connections_opened"]
        os.truncate(part.path, 10**8)  # more than sockets hold
        answer = await stage.end(stage.submit(file=FilePart(part.path, 0, 10**8)))
        assert isinstance(answer, Answer) and answer.body == b"early"
        os.unlink(part.path)
        lost = await stage.end(stage.submit(file=part))
        assert isinstance(lost, Failed) and lost.kind == "internal"
        assert "read the request's body again" in lost.message
        assert stage.gauges["connections_opened"] == opened + 1  # that of the rest was not reused
        await stage.settled()

    play(tmp_path, script, scene)


def test_expiry_while_running_is_told_and_closes_the_connection(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.hold()

    async def scene(stage: Scene) -> None:
        end = await stage.end(stage.submit(expires_at=time.monotonic() + 0.2))
        assert isinstance(end, Failed) and end.kind == "expired" and end.started_at > 0
        await stage.settled()
        assert stage.adapter._client.in_flight == 0

    play(tmp_path, script, scene)


def test_every_way_out_lets_go_of_everything(tmp_path: Path) -> None:
    """Cancelled, the ingress gone, the model server dead, an impossible path."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number % 2:
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await peer.hold()

    async def scene(stage: Scene) -> None:
        running = [stage.submit() for _ in range(4)]
        await wait_until_async(lambda: stage.gauges["running"] == 4)
        stage.ingress.send(Cancel(running[0]))
        stage.ingress.send(Cancel(running[1]))
        await wait_until_async(
            lambda: all(type(heard) is Cancelled for heard in map(stage.last, running[:2]))
        )
        for job in running[:2]:
            assert 0 < stage.last(job).started_at <= time.monotonic()
        bad = await stage.end(stage.submit(path="no slash"))
        assert isinstance(bad, Failed) and bad.kind == "model_failed"
        await wait_until_async(lambda: stage.gauges["running"] == 2)
        stage.adapter._runs.peer_gone("ingress-0")
        await stage.settled()
        begun = stage.submit()
        await wait_until_async(lambda: stage.gauges["running"] == 1)
        stage.adapter.on_control(ModelState(ChildState.FAILED, 1, reason="signal 9"))
        await stage.end(begun)
        await stage.settled()

    play(tmp_path, script, scene)


def test_a_port_that_refuses_while_the_health_url_is_well_is_no_busy_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            RawServer(status(200)) as health,
            RawServer(status(200)) as server,
            Scene(tmp_path, server, health=f"{health.url}/health") as stage,
        ):
            server.stop_listening()
            end = await stage.end(stage.submit(expires_at=time.monotonic() + 2.0))
            assert isinstance(end, Failed | Rejected)
            assert 2 < health.accepted < 20
            await stage.settled()

    uvloop.run(main())


def test_a_client_that_is_refused_is_told_no_secret_of_the_health_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_API_KEY", "k3y-of-the-health-path")
    code = 200

    async def health_path(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.answer(b"{}", status=code)

    async def main() -> None:
        nonlocal code
        async with (
            RawServer(health_path) as health,
            RawServer(status(200)) as server,
            Scene(tmp_path, server, f"{health.url}/health?key=k3y-of-the-health-path") as stage,
        ):
            server.stop_listening()
            code = 503
            stage.submit()  # finds nobody there: its health is looked at
            await wait_until_async(lambda: "answered 503" in stage.gauges["model_reason"])
            end = await stage.end(stage.submit(max_queue_time_s=0.2))
            assert isinstance(end, Rejected)
            assert "/health?key=*** answered 503" in end.message, end.message

    uvloop.run(main())


# ------------------------------------------------------------------ jobs for a worker.py


class HookHost:
    """What answers hosted jobs on its socket while ``async with``, or cuts their connections."""

    def __init__(self, stage: Scene) -> None:
        self._path = stage.runtime.address(HOSTED_SOCKET).removeprefix("ipc://")
        self._server: asyncio.Server
        self.cutting = 0  #: requests that are still to be cut
        self.unsent = 0  #: requests of which it says that the model server was not there

    async def __aenter__(self) -> HookHost:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, 0)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head, _ = await peer.request()
            if self.cutting and head.startswith(b"POST"):
                self.cutting -= 1
            elif self.unsent and head.startswith(b"POST"):
                self.unsent -= 1
                await peer.answer(b"refused", 503, b"x-lighterman-unsent: 1\r\n")
            else:
                await peer.answer(b"hosted", headers=b"connection: close\r\n")
        writer.close()


def play_hosted(
    directory: Path, scene: Callable[[Scene, RawServer], Awaitable[None]], **queue: Any
) -> None:
    async def main() -> None:
        async with (
            RawServer(status(200)) as server,
            Scene(directory, server, hooks="worker.py", **queue) as stage,
        ):
            await scene(stage, server)

    uvloop.run(main())


def test_a_worker_py_that_is_away_holds_its_own_jobs_only(tmp_path: Path) -> None:
    async def scene(stage: Scene, server: RawServer) -> None:
        waiting = [stage.submit(hosted=True) for _ in range(3)]
        await wait_until_async(lambda: stage.gauges["waiting"] == 3, what="them to come back")
        probes = server.accepted
        for _ in range(5):
            assert isinstance(await stage.end(stage.submit()), Answer)
        assert stage.gauges["model_ready"] and server.accepted == probes + 1, "no probe, no pause"
        late = stage.submit(hosted=True, max_queue_time_s=0.2)
        end = await stage.end(late)
        assert isinstance(end, Rejected) and end.kind == "hooks_down" and end.retry_after_s > 0
        async with HookHost(stage):
            for job in waiting:
                assert (await stage.end(job)).body == b"hosted"
        await stage.settled()

    play_hosted(tmp_path, scene)


def test_a_worker_py_that_failed_for_good_is_nothing_to_wait_for(tmp_path: Path) -> None:
    async def scene(stage: Scene, server: RawServer) -> None:
        waiting = stage.submit(hosted=True)
        await wait_until_async(lambda: stage.gauges["waiting"] == 1)
        stage.adapter.on_control(ChildNote("hooks", ChildState.FAILED, "exit 1", 3))
        for job in (waiting, stage.submit(hosted=True)):
            end = await stage.end(job)
            assert isinstance(end, Rejected) and end.kind == "hooks_down"
        assert isinstance(await stage.end(stage.submit()), Answer)
        stage.adapter.on_control(ChildNote("hooks", ChildState.STARTING, "", 4))
        waiting = stage.submit(hosted=True)
        await wait_until_async(lambda: stage.gauges["waiting"] == 1)
        async with HookHost(stage):
            assert (await stage.end(waiting)).body == b"hosted"
        await stage.settled()

    play_hosted(tmp_path, scene)


def test_a_request_that_a_worker_py_passed_on_and_lost_is_a_doubt_about_the_model_server(
    tmp_path: Path,
) -> None:
    async def scene(stage: Scene, server: RawServer) -> None:
        async with HookHost(stage) as host:
            assert (await stage.end(stage.submit(hosted=True))).body == b"hosted"
            probes = server.accepted
            host.cutting = 1
            assert (await stage.end(stage.submit(hosted=True))).body == b"hosted"
            assert server.accepted == probes + 1, "it was looked at before the job ran again"
            host.cutting = 2
            end = await stage.end(stage.submit(hosted=True))
            assert isinstance(end, Failed) and end.kind == "model_failed"
        await stage.settled()

    play_hosted(tmp_path, scene)


def test_what_a_worker_py_could_not_send_on_costs_no_attempt(tmp_path: Path) -> None:
    async def scene(stage: Scene, server: RawServer) -> None:
        async with HookHost(stage) as host:
            for redeliver in (True, False):
                probes, host.unsent = server.accepted, 3
                job = stage.submit(hosted=True, redeliver=redeliver)
                assert (await stage.end(job)).body == b"hosted"
                assert server.accepted >= probes + 3, "the model server was looked at each time"
            for redeliver, attempts in ((True, 2), (False, 1)):
                host.unsent = 1000  # it says so for ever
                end = await stage.end(stage.submit(hosted=True, redeliver=redeliver))
                assert isinstance(end, Failed) and end.kind == "model_failed"
                assert 1000 - host.unsent == 3 + attempts
        await stage.settled()

    play_hosted(tmp_path, scene)


# ------------------------------------------------------------------------- what is waited for


async def _said_of(directory: Path, model: ModelSettings, said: str) -> None:
    """Wait until an adapter in front of this model server says that it waits for ``said``."""
    settings = Settings(model=model, hooks=HooksSettings(file="/app/worker.py"))
    runtime = Runtime("backend_adapter", Handoff("run", str(directory), os.getpid(), settings))
    adapter = Adapter(runtime)
    await adapter.start()
    try:
        adapter.on_control(ModelState("external"))
        await wait_until_async(
            lambda: re.match(said, str(adapter.beat().gauges["model_awaits"])), what=said
        )
    finally:
        for timer in runtime._timers.values():
            timer.cancel()
        for task in list(runtime._aside):
            task.cancel()
        await adapter.stop()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"log_file": "LOG"}, "waiting for a line with 'up' or 'ready' in LOG (no such file yet)"),
        ({"log_file": "LOG/below"},
         "waiting for a line with 'up' or 'ready' in LOG/below (no such file yet)"),
        ({"log_file": "HERE"}, "waiting for a line with 'up' or 'ready' in HERE"),
        ({"log_file": "HERE/below"},
         "waiting for a line with 'up' or 'ready' in HERE/below (Not a directory)"),
        ({"command": ["model"]}, "waiting for a line with 'up' or 'ready' in its output"),
        ({"command": ["model"], "ready_log": list("abcde")},
         "waiting for a line with 'a' or 'b' or 'c' or 2 more in its output"),
        ({"lifecycle": True}, "waiting for the lifecycle of worker.py"),
    ],
)  # fmt: skip
def test_the_line_that_is_waited_for_is_named(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    (tmp_path / "here.log").touch()
    paths = {"LOG": str(tmp_path / "none.log"), "HERE": str(tmp_path / "here.log")}
    for word, path in paths.items():
        said = said.replace(word, path)
        if "log_file" in fields:
            fields = fields | {"log_file": fields["log_file"].replace(word, path)}
    model = ModelSettings(**({"url": "http://127.0.0.1:1", "ready_log": ["up", "ready"]} | fields))

    asyncio.run(_said_of(tmp_path, model, re.escape(said) + "$"))


@pytest.mark.parametrize(
    ("health", "said"),
    [
        ("/health", "waiting for GET /health to answer 2xx (last: "),
        ("", "waiting for URL to take a connection (last: cannot connect to "),
    ],
)
def test_the_probe_that_is_waited_for_is_named_with_what_was_wrong(
    tmp_path: Path, health: str, said: str
) -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    model = ModelSettings(url=url, health=health)
    asyncio.run(_said_of(tmp_path, model, re.escape(said.replace("URL", url))))


@pytest.mark.parametrize(
    ("module", "why"),
    [("there", "there is no libnvidia-ml.so.1 here"), ("missing", "nvidia-ml-py is not installed")],
)
def test_without_a_gpu_there_is_no_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, why: str
) -> None:
    if module == "missing":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif any(Path(line).exists() for line in ("/dev/nvidiactl", "/proc/driver/nvidia")):
        pytest.skip("this machine has NVIDIA's driver")

    async def scene(stage: Scene) -> None:
        def watch() -> str:
            return str(stage.gauges["gpu_watch"])

        await wait_until_async(lambda: watch().startswith("off: "), what="the watch to be off")
        assert why in watch()
        assert stage.gauges["model_ready"]

    play(tmp_path, status(200), scene)
