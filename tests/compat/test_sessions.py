"""What a worker.py has to do with sessions: how many, and who looks at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compat.bench import Bench, on_the_bench
from tests.kit.wait import wait_until

FILE = """
from aiohttp import web
from vastai import Worker, WorkerConfig, HandlerConfig

async def look(client_request, model_response):
    sessions = worker.backend.sessions
    return web.json_response({
        name: [s.lifetime, s.on_close_route, s.on_close_payload, s.auth_data, s.session_reqnum,
               s.expiration > s.created_at]
        for name, s in sessions.items()
    })

worker = Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[HandlerConfig("/look", response_generator=look), HandlerConfig("/run")],
    max_sessions=MOST,
))
worker.run()
"""


def create(bench: Bench, **payload: Any) -> str:
    status, _, body = bench.ask("/session/create", payload)
    assert status == 201, body
    return str(json.loads(body)["session_id"])


def test_a_file_sees_the_open_sessions(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, FILE.replace("MOST", "10")) as bench:
        bench.until_ready()
        one = create(bench, lifetime=30, on_close_route="/end", on_close_payload={"a": 1})
        bench.json("/run", {}, session_id=one)
        expected = {one: [30, "/end", {"a": 1}, {}, 1, True]}
        wait_until(lambda: bench.json("/look", {}) == expected, what="it is seen")
        two = create(bench)
        wait_until(lambda: set(bench.json("/look", {})) == {one, two}, what="both are seen")
        status, _, _ = bench.ask_body("/session/end", {"session_id": one, "session_auth": {}})
        assert status == 200
        wait_until(lambda: set(bench.json("/look", {})) == {two}, what="one is gone")
        # both processes may die: the file sees what is open
        for name in ("backend_adapter", "hooks"):
            bench.say("restart", name)
            wait_until(lambda: set(bench.json("/look", {})) == {two}, what="it is seen again")


@pytest.mark.parametrize(("most", "open_at_once"), [("1", 1), ("0", 12), ("None", 12)])
def test_how_many_there_may_be(most: str, open_at_once: int, tmp_path: Path) -> None:
    with on_the_bench(tmp_path, FILE.replace("MOST", most)) as bench:
        bench.until_ready()
        for _ in range(open_at_once):
            create(bench)
        status, _, _ = bench.ask("/session/create", {})
        assert status == (429 if most == "1" else 201)
