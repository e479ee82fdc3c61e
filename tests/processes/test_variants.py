"""Whole workers in other shapes: a third-party model server, one started by somebody else, TLS,
several ingress processes, no authentication, slow clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from supervisor.exit_codes import ExitCode
from supervisor.plan import free_port
from tests.kit.certificates import make_pair
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, post_json, running

#: A program of the kind that people run: a few lines on uvicorn, JSON and a stream.
APP = """
import asyncio, json

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = b""
    while scope["path"] != "/health":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    stream = scope["path"] == "/stream"
    kind = b"text/event-stream" if stream else b"application/json"
    headers = [(b"content-type", kind), (b"x-model", b"ten lines"), (b"set-cookie", b"a=1"),
               (b"set-cookie", b"b=2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if stream:
        for n in range(json.loads(body)["n"]):
            await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % n,
                        "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"data: [DONE]\\n\\n"})
    else:
        answer = json.dumps({"you_said": json.loads(body or b"{}")}).encode()
        await send({"type": "http.response.body", "body": answer})
"""
ROUTE_OF_STREAMS = '[[route]]\npath = "/generate_stream"\n'
ROUTES = '[[route]]\npath = "/echo"\n[[route]]\npath = "/stream"\n'


def post(worker: Worker, route: str, payload: Any, **more: Any) -> tuple[int, Any, bytes]:
    async def ask() -> tuple[int, Any, bytes]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
            session.post(
                worker.url + route,
                json={"auth_data": worker.auth(), "payload": payload} | more,
                ssl=False,
            ) as answer,
        ):
            return answer.status, answer.headers, await answer.read()

    return asyncio.run(ask())


def test_a_uvicorn_program_as_model_server(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    toml = (
        f'[model]\ncommand = {json.dumps(command)}\ncwd = "{tmp_path}"\n'
        f'url = "http://127.0.0.1:{port}"\nready_log = ["Application startup complete."]\n'
        'health = "/health"\n'
        '[benchmark]\nroute = "/echo"\nruns = 2\nconcurrency = 4\n'
    )
    with running(tmp_path, toml=toml, routes=ROUTES) as worker:
        status, headers, body = post(worker, "/echo", {"text": "naïve ☃", "n": [1, 2.5, None]})
        assert status == 200
        assert json.loads(body) == {"you_said": {"text": "naïve ☃", "n": [1, 2.5, None]}}
        assert headers["x-model"] == "ten lines"
        assert headers.getall("set-cookie") == ["a=1", "b=2"]
        status, headers, body = post(worker, "/stream", {"n": 30})
        assert status == 200 and headers["content-type"] == "text/event-stream"
        assert body == b"".join(b"data: %d\n\n" % n for n in range(30)) + b"data: [DONE]\n\n"
        assert worker.status()["queue"]["max_perf"] > 0
        old = worker.kill("model")
        worker.wait_replaced("model", old)
        wait_until(lambda: worker.status()["model"]["ready"], what="the model to be ready again")
        assert post(worker, "/echo", {"again": True})[0] == 200


def test_a_model_server_that_something_else_starts(tmp_path: Path) -> None:
    port, log = free_port("127.0.0.1"), tmp_path / "model.log"
    toml = (
        f'[model]\nurl = "http://127.0.0.1:{port}"\nhealth = "/health"\nlog_file = "{log}"\n'
        'ready_log = ["startup complete"]\nerror_log = ["HARBOUR ON FIRE"]\nprobe_every_s = 0.3\n'
    )
    argv = [sys.executable, "-m", "supervisor.demo.model", "--port", str(port)]

    def reports() -> list[Any]:
        return [entry.get("report", entry) for entry in worker.record()["status"]]

    with log.open("wb") as output:
        model = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
    try:
        with running(tmp_path, toml=toml) as worker:
            assert "model" not in worker.members()
            assert post(worker, "/generate", {"inputs": "x"})[0] == 200
            with log.open("a") as output:
                output.write("HARBOUR ON FIRE\n")
            wait_until(
                lambda: any("HARBOUR ON FIRE" in report["error_msg"] for report in reports()),
                what="the error line to be reported",
            )
            wait_until(lambda: reports()[-1]["error_msg"] == "", what="the error to clear")
            model.kill()
            model.wait()
            wait_until(
                lambda: "does not answer" in reports()[-1]["error_msg"], what="its death to be told"
            )
            with log.open("wb") as output:
                model = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
            wait_until(lambda: reports()[-1]["error_msg"] == "", what="its return to be told")
            assert post(worker, "/generate", {"inputs": "x"})[0] == 200
    finally:
        model.kill()
        model.wait()


def test_several_ingress_processes_share_the_port(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(60):
                load.start("/generate", {"inputs": "x"})
            return await load.outcomes()

    with running(tmp_path, settings=("worker.processes=2",)) as worker:
        assert asyncio.run(scene(worker, worker.auth())) == {"ok": 60}
        gauges = [worker.members()[f"ingress-{n}"]["gauges"] for n in range(2)]
        wait_until(
            lambda: sum(
                worker.members()[f"ingress-{n}"]["gauges"]["requests"] for n in range(2)
            ) == 60,
            what="both beats",
        )  # fmt: skip
        assert len(gauges) == 2


def test_without_authentication_only_where_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, environ={"UNSECURED": "true"}) as worker:
        assert "AUTHENTICATION IS OFF" in worker.printed

        async def ask() -> int:
            async with (
                aiohttp.ClientSession() as session,
                session.post(worker.url + "/generate", json={"payload": {"inputs": "x"}}) as answer,
            ):
                return answer.status

        assert asyncio.run(ask()) == 200


def rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def test_a_worker_that_cannot_bind_its_port_names_the_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        worker = Worker(tmp_path, settings=(f"worker.port={port}", "restart.budget=1")).start()
        try:
            assert worker.process.wait(60) == 76
            assert str(os.getpid()) in worker.printed
        finally:
            end(worker)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_worker_gets_no_part_of_the_port(processes: int, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    several = f"worker.processes={processes}"
    with running(tmp_path, settings=(several,)) as worker:
        port = urlsplit(worker.url).port
        second = Worker(tmp_path / "second", settings=(several, f"worker.port={port}")).start()
        try:
            assert second.process.wait(60) == ExitCode.PORT_TAKEN
            assert f"worker.port: port {port} is held by" in second.printed
        finally:
            end(second)


def test_clients_that_leave_large_answers_over_tls_cost_nobody_else(tmp_path: Path) -> None:
    def leave(context: ssl.SSLContext, place: tuple[str, int], count: int) -> None:
        for number in range(count):
            with context.wrap_socket(socket.create_connection(place, 30.0)) as client:
                body = b'{"payload":{}}'
                client.sendall(b"POST /generate_stream HTTP/1.1\r\nhost: a\r\n"
                               b"content-length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
                for _ in range(number % 50 + 1):
                    assert client.recv(65_536)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    cert, key = make_pair(tmp_path, "127.0.0.1")
    model = free_port("127.0.0.1")
    command = [sys.executable, "-m", "tests.kit.hoarding_model", str(model)]
    toml = f'[model]\ncommand = {json.dumps(command)}\nurl = "http://127.0.0.1:{model}"\n'
    secure = ("tls.enabled=true", f"tls.cert={cert}", f"tls.key={key}", "auth.mode=none")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running(tmp_path, toml=toml, routes=ROUTE_OF_STREAMS, settings=secure) as worker:
        url = urlsplit(worker.url)
        place = (str(url.hostname), int(url.port or 0))
        with ThreadPoolExecutor(8) as pool:
            for task in [pool.submit(leave, context, place, 40) for _ in range(8)]:
                task.result()
        assert worker.members()["ingress-0"]["restarts"] == 0


def test_the_first_request_after_a_restart_of_the_local_engine_is_taken(tmp_path: Path) -> None:
    """It comes back with the same key: who was signed for by the one before is let in, too."""
    with running(tmp_path) as worker:
        auth = worker.auth()
        for _ in range(3):
            old = worker.pid("engine")
            worker.command("restart", "engine")
            worker.wait_replaced("engine", old)
            assert post(worker, "/generate", {"inputs": "x"})[0] == 200
            assert post(worker, "/generate", {"inputs": "x"}, auth_data=auth)[0] == 200


def test_bodies_are_let_go_when_their_requests_end(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        pid = worker.pid("backend_adapter")
        large = {"inputs": "x" * 900_000}
        assert post(worker, "/generate", large)[0] == 200
        before = rss(pid)
        for _ in range(70):
            assert post(worker, "/generate", large)[0] == 200
        assert rss(pid) - before < 25 * 2**20  # of 63 MB that passed


def test_what_runs_takes_no_place_of_what_waits(tmp_path: Path) -> None:
    """Four run, and one may wait."""
    port, settings = free_port("127.0.0.1"), ("queue.max_jobs=1", "model.max_connections=4")
    command = json.dumps([sys.executable, "-m", "tests.kit.hoarding_model", str(port)])
    model = f'[model]\ncommand = {command}\nurl = "http://127.0.0.1:{port}"\n'
    route = '[[route]]\npath = "/generate"\nmax_queue_time_s = inf\n'
    with running(tmp_path, toml=model, routes=route, settings=settings) as worker:

        async def flood() -> Counter[str]:
            async with Load(worker.url, worker.auth()) as load:
                for many, gauge in (
                    (1, "running"),
                    (2, "running"),
                    (3, "running"),
                    (4, "running"),
                    (1, "waiting"),
                ):
                    load.start("/generate", {"inputs": "x"})
                    await asyncio.to_thread(
                        wait_until,
                        lambda: worker.status().get("queue", {}).get(gauge) == many,  # noqa: B023
                        what=f"{many} {gauge}",
                    )
                refused = await load.start("/generate", {"inputs": "x"})
                assert (refused.kind, refused.status) == ("overloaded", 503)
                await asyncio.to_thread(post_json, f"http://127.0.0.1:{port}/release", {})
                return await load.outcomes()

        assert asyncio.run(flood()) == {"ok": 5, "overloaded": 1}
