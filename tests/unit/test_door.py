"""The door behind the real HTTP server: what becomes a job, what is refused, what is let go of."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from backend_adapter.hook_messages import Forget, Prepare, Prepared
from backend_adapter.messages import Answer, Cancel, Cancelled, Submit
from ingress.admission import Admission
from ingress.answers import Answers
from ingress.auth import Authenticator
from ingress.budget import SOFT_LARGE_BYTES
from ingress.door import Door
from ingress.envelope import decode_unsigned
from ingress.http import Server
from ingress.management import Management
from ingress.nonce_file import NonceFile
from ingress.questions import Questions
from ingress.routes import compile_routes
from ingress.spool import Spool
from ingress.strict import StrictDoor
from reporter.producer_ledger import ProducerLedger
from supervisor.settings import LimitSettings, RouteSettings, Workload
from tests.kit.wait import wait_until_async

AUTH = {
    "signature": "s", "cost": 1, "endpoint": "e", "reqnum": 1, "request_idx": 7, "url": "http://w"
}  # fmt: skip
SECRET = "k3y-of-the-endpoint"


class Scene:
    """A door whose jobs are answered at once; ``jobs`` holds what it took."""

    def __init__(self) -> None:
        self.jobs: list[Submit] = []
        self.cancelled: list[int] = []
        self.answering = True
        self.admission = Admission(max_jobs=2)
        self.ledger = ProducerLedger("ingress-0", 1)
        self.questions = Questions(30.0, 7)
        self.update_file = f"/tmp/lighterman-update-{os.getpid()}"
        self.asked: list[Prepare | Forget] = []
        self.answers = Answers(self.admission, self.ledger, 4096)
        self.answers.send = self.to_adapter
        self.admission.link_up()
        self.door = Door(
            compile_routes([RouteSettings(path="/a")]),
            Authenticator("none", "any", "", False, 100, 16),
            self.admission,
            self.ledger,
            self.questions,
            Management("t0ken", self.update_file),
            decode=decode_unsigned,
            credit_bytes=4096,
            ask=lambda message: self.asked.append(message) or True,
            answers=self.answers,
        )
        self.server = Server(self.door, LimitSettings(), asyncio.get_running_loop())
        self.port = 0

    def to_adapter(self, message: Any) -> bool:
        if isinstance(message, Cancel):
            self.cancelled.append(message.id)
            said = [Cancelled(message.id)]
            asyncio.get_running_loop().call_soon(self.answers.hear, said, time.monotonic())
        else:
            self.jobs.append(message)
            if self.answering:
                self.answers.hear([Answer(message.id, 200, b"", 0.0)], time.monotonic())
        return True

    async def send(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request on a connection of its own; status and body of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            lines = f"{head}\r\nhost: w\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(lines.encode() + body)
            answer = await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()
            await writer.wait_closed()
        start, _, rest = answer.partition(b"\r\n\r\n")
        return int(start.split()[1]), rest


def play(script: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        scene = Scene()
        scene.port = await scene.server.listen("127.0.0.1", 0)
        try:
            await script(scene)
        finally:
            scene.server.close()
            await wait_until_async(lambda: scene.server.connections == 0)

    uvloop.run(main())


def envelope(**more: Any) -> bytes:
    return json.dumps({"payload": {"x": 1}} | more).encode()


@pytest.mark.parametrize("more", [{}, {"auth_data": AUTH}, {"auth_data": {"cost": "x"}}])
def test_the_query_and_the_bearer_never_go_on(more: dict[str, Any]) -> None:
    async def script(scene: Scene) -> None:
        head = f"POST /a?api_key={SECRET} HTTP/1.1\r\nauthorization: Bearer {SECRET}"
        assert (await scene.send(head, envelope(**more)))[0] == 200
        submit = scene.jobs[0]
        assert submit.path == "/a"
        assert SECRET.encode() not in submit.headers + bytes(submit.body)

    play(script)


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({}, -1),
        ({"auth_data": None}, -1),
        ({"auth_data": {"cost": 1}}, -1),
        ({"auth_data": AUTH}, 7),
        ({"auth_data": AUTH | {"request_idx": 0}}, 0),
    ],
)
def test_a_request_that_the_engine_does_not_know_is_not_reported_as_its_number_zero(
    more: dict[str, Any], known: int
) -> None:
    async def script(scene: Scene) -> None:
        assert (await scene.send("POST /a HTTP/1.1", envelope(**more)))[0] == 200
        events = scene.ledger.batch()
        assert events is not None
        assert [closed.request_idx for closed in events.closed] == [known]

    play(script)


def test_a_route_that_a_reload_took_away_while_the_body_arrived() -> None:
    async def script(scene: Scene) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.port)
        body = envelope()
        writer.write(b"POST /a HTTP/1.1\r\nhost: w\r\ncontent-length: %d\r\n\r\n" % len(body))
        await wait_until_async(lambda: scene.server.active == 1)
        scene.door.routes = compile_routes([])
        writer.write(body)
        assert b" 404 " in await asyncio.wait_for(reader.readline(), 30)
        writer.close()
        await writer.wait_closed()
        assert scene.jobs == [] and scene.ledger.requests == 0

    play(script)


def test_what_is_refused_by_its_head_is_counted_once() -> None:
    async def script(scene: Scene) -> None:
        assert (await scene.send("POST /b HTTP/1.1", envelope()))[0] == 404
        assert (await scene.send("PUT /a HTTP/1.1", envelope()))[0] == 405
        assert (await scene.send("PUT /a HTTP/1.1", envelope()))[0] == 405
        scene.ledger.refused_at_port({kind.value: n for kind, n in scene.server.refused.items()})
        events = scene.ledger.batch()
        assert events is not None
        assert events.refused == {"unknown_route": 1, "method_not_allowed": 2}

    play(script)


def test_no_more_jobs_than_allowed_and_a_departure_makes_room() -> None:
    async def script(scene: Scene) -> None:
        scene.answering = False
        waiting = [asyncio.create_task(scene.send("POST /a HTTP/1.1", envelope()))]
        waiting.append(asyncio.create_task(scene.send("POST /a HTTP/1.1", envelope())))
        await wait_until_async(lambda: len(scene.jobs) == 2)
        status, body = await scene.send("POST /a HTTP/1.1", envelope())
        assert (status, json.loads(body)["error"]["kind"]) == (503, "overloaded")
        waiting[0].cancel()
        await wait_until_async(lambda: len(scene.cancelled) == 1)
        scene.answering = True
        assert (await scene.send("POST /a HTTP/1.1", envelope()))[0] == 200
        waiting[1].cancel()
        await wait_until_async(lambda: len(scene.cancelled) == 2)
        await asyncio.gather(*waiting, return_exceptions=True)
        ledger = scene.ledger
        await wait_until_async(lambda: ledger.pending == 0.0, what="the last account to close")
        assert (ledger.cancelled, ledger.served) == (200.0, 100.0)

    play(script)


def test_an_update_is_asked_for_with_the_engines_token() -> None:
    async def script(scene: Scene) -> None:
        written = Path(scene.update_file)
        written.unlink(missing_ok=True)
        line = "POST /pyworker/update HTTP/1.1"
        for head in (line, f"{line}\r\nauthorization: Bearer nope", f"{line}\r\nauthorization: "):
            status, body = await scene.send(head)
            assert (status, json.loads(body)["error"]["kind"]) == (401, "bad_token")
        assert (await scene.send("GET /pyworker/update HTTP/1.1"))[0] == 405
        assert not written.exists()
        for given in ("Bearer t0ken", "t0ken"):
            assert await scene.send(f"{line}\r\nauthorization: {given}") == (200, b'{"ok": true}')
            assert written.read_bytes() == b""
            written.unlink()

    play(script)


def strict(scene: Scene, directory: Path) -> None:
    """Nothing passes that alice has not signed."""
    key = {"alice": "JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs="}
    scene.server._shared.app = StrictDoor(
        scene.door, key, "http://w", NonceFile(str(directory)), scene.ledger.refuse,
        exempt=scene.door.takes_updates_at,
    )  # fmt: skip


def test_a_route_at_the_path_of_updates_is_behind_the_strict_door(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        strict(scene, tmp_path)
        line = "POST /pyworker/update HTTP/1.1"
        status, body = await scene.send(f"{line}\r\nauthorization: Bearer t0ken")
        assert (status, body) == (200, b'{"ok": true}')
        Path(scene.update_file).unlink()
        scene.door.routes = compile_routes([RouteSettings(path="/pyworker/update")])
        status, body = await scene.send(line, envelope())
        assert (status, json.loads(body)["error"]["kind"]) == (401, "client_signature_missing")
        assert not scene.jobs

    play(script)


@pytest.mark.parametrize("to_route", [True, False])
def test_what_a_reload_makes_of_the_path_of_updates_is_asked_for_its_own_proof(
    to_route: bool, tmp_path: Path
) -> None:
    """The head came for the one, the body for the other."""

    async def script(scene: Scene) -> None:
        there, none = compile_routes([RouteSettings(path="/pyworker/update")]), compile_routes([])
        scene.door.routes, after = (none, there) if to_route else (there, none)
        if to_route:
            strict(scene, tmp_path)
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.port)
        proof = b"authorization: Bearer t0ken\r\n" if to_route else b""
        writer.write(
            b"POST /pyworker/update HTTP/1.1\r\nhost: w\r\nconnection: close\r\n"
            + proof + b"content-length: %d\r\n\r\n" % len(envelope())
        )  # fmt: skip
        await wait_until_async(lambda: scene.server.active == 1)
        scene.door.routes = after
        writer.write(envelope())
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        kind = b"client_signature_missing" if to_route else b"bad_token"
        assert answer.startswith(b"HTTP/1.1 401 ") and kind in answer
        assert not scene.jobs and not Path(scene.update_file).exists()
        assert scene.ledger.batch().refused == {kind.decode(): 1}  # type: ignore[union-attr]

    play(script)


def test_an_update_that_cannot_be_written_is_said() -> None:
    async def script(scene: Scene) -> None:
        scene.door._management = Management("t0ken", "/nowhere/at/all")
        head = "POST /pyworker/update HTTP/1.1\r\nauthorization: Bearer t0ken"
        status, body = await scene.send(head)
        assert status == 500 and "/nowhere/at/all" in json.loads(body)["error"]["message"]

    play(script)


@pytest.mark.parametrize(("most", "counts"), [(0.0, 1e5), (5e6, 5e6)])
def test_a_session_counts_for_what_a_route_lets_it(most: float, counts: float) -> None:
    async def script(scene: Scene) -> None:
        route = RouteSettings(path="/a", workload=Workload(max=most))
        scene.door.routes = compile_routes([route, RouteSettings(path="/b")])
        body = envelope(auth_data=AUTH | {"cost": 2**40})
        assert (await scene.send("POST /session/create HTTP/1.1", body))[0] == 200
        assert [job.workload for job in scene.jobs] == [counts]

    play(script)


def test_without_a_token_nobody_may_ask() -> None:
    async def script(scene: Scene) -> None:
        scene.door._management = Management("", scene.update_file)
        head = "POST /pyworker/update HTTP/1.1\r\nauthorization: Bearer "
        assert (await scene.send(head))[0] == 401

    play(script)


def test_a_worker_py_that_failed_for_good_is_nothing_to_wait_for() -> None:
    async def script(scene: Scene) -> None:
        routes = [RouteSettings(path="/a", prepare=True), RouteSettings(path="/h", hosted=True)]
        scene.door.routes = compile_routes([*routes, RouteSettings(path="/plain")])
        waiting = asyncio.create_task(scene.send("POST /a HTTP/1.1", envelope(auth_data=AUTH)))
        await wait_until_async(lambda: len(scene.asked) == 1)
        scene.door.hooks_failed(True)
        body = envelope(auth_data=AUTH)
        again = [await scene.send(f"POST {path} HTTP/1.1", body) for path in ("/a", "/h")]
        for status, body in (await waiting, *again):
            error = json.loads(body)["error"]
            assert (status, error["kind"], error["request_idx"]) == (503, "hooks_down", 7)
        assert len(scene.asked) == 1 and scene.jobs == []
        assert (await scene.send("POST /plain HTTP/1.1", envelope()))[0] == 200
        events = scene.ledger.batch()
        assert events is not None and events.refused == {"hooks_down": 3}
        scene.door.hooks_failed(False)  # somebody has started it again
        assert (await scene.send("POST /h HTTP/1.1", envelope()))[0] == 200

    play(script)


def test_who_asked_a_worker_py_and_left_or_waited_too_long_is_forgotten_there() -> None:
    async def script(scene: Scene) -> None:
        scene.door.routes = compile_routes([RouteSettings(path="/a", prepare=True)])
        gone = asyncio.create_task(scene.send("POST /a HTTP/1.1", envelope()))
        await wait_until_async(lambda: len(scene.asked) == 1)
        late = asyncio.create_task(scene.send("POST /a HTTP/1.1", envelope()))
        await wait_until_async(lambda: len(scene.asked) == 2)
        first, second = scene.asked
        gone.cancel()
        await wait_until_async(lambda: scene.asked[2:] == [Forget(first.id)])
        scene.door.expire_questions(time.monotonic() + 31.0)
        status, body = await late
        assert (status, json.loads(body)["error"]["kind"]) == (504, "hook_timeout")
        assert scene.asked[2:] == [Forget(first.id), Forget(second.id)]
        await asyncio.gather(gone, return_exceptions=True)

    play(script)


def test_a_body_whose_file_was_spoilt_meanwhile_costs_its_own_request(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        limits = LimitSettings(large_bytes=1)
        loop = asyncio.get_running_loop()
        spool = partial(Spool, str(tmp_path), "ingress-0", loop)
        server = Server(scene.door, limits, loop, spool)
        scene.port = await server.listen("127.0.0.1", 0)
        scene.door.routes = compile_routes([RouteSettings(path="/a", prepare=True)])
        try:
            for number, spoilt in enumerate((b"no JSON" * 10_000, b"")):
                task = asyncio.create_task(
                    scene.send("POST /a HTTP/1.1", envelope(more="x" * SOFT_LARGE_BYTES))
                )
                await wait_until_async(lambda at=number: len(scene.asked) > at)
                (path,) = tmp_path.iterdir()
                path.write_bytes(spoilt)
                scene.door.on_prepared(Prepared(scene.asked[number].id, 1.0, untouched=True), 0.0)
                status, body = await task
                assert status in (500, 503) and json.loads(body)["error"]["kind"]
                await wait_until_async(lambda: not server.spooled_bytes)
                assert not scene.jobs
        finally:
            server.close()

    play(script)
