"""The public PyWorker and ours run the same worker.py, and are asked the same.

What differs is named here, each with its reason (docs/migration.md has the same list for people).
"""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.compat.bench import on_the_bench
from tests.interop.peer import the_peer
from tests.kit import demo_programs

pytest.importorskip("vastai.serverless.server.worker")

TEXT = """
from aiohttp import web
from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig
from vastai.serverless.server.lib.data_types import JsonDataException

def parse(payload):
    if "text" not in payload:
        raise JsonDataException({"text": "missing parameter"})
    return {"inputs": payload["text"], "n": [1, 2.5, None, True, "é"]}

async def form(client_request, model_response):
    told = await model_response.json()
    asked = await client_request.json()
    return web.json_response({"told": told["got"], "asked": asked["payload"],
                              "path": client_request.path}, status=203,
                             headers={"X-Formed": "yes"})

async def add(a, b=2):
    return {"sum": a + b}

Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file=LOG,
    model_healthcheck_url="/health",
    handlers=[
        HandlerConfig("/plain", allow_parallel_requests=True,
                      workload_calculator=lambda data: data.get("n", 1),
                      benchmark_config=BenchmarkConfig(dataset=[{"n": 1}], runs=1, concurrency=2)),
        HandlerConfig("/parsed", request_parser=parse),
        HandlerConfig("/formed", response_generator=form),
        HandlerConfig("/add", remote_function=add, is_remote_dispatch=True),
        HandlerConfig("/stream", allow_parallel_requests=True),
        HandlerConfig("/broken"),
    ],
    log_action_config=LogActionConfig(on_load=["READY"]),
    max_sessions=1,
)).run()
"""
AUTH = {
    "cost": 1, "endpoint": "e", "reqnum": 1, "request_idx": 1, "signature": "s", "url": "u",
}  # fmt: skip


def envelope(payload: Any, **more: Any) -> dict[str, Any]:
    return {"auth_data": AUTH, "payload": payload, **more}


#: name → (route, body)
SAME: dict[str, tuple[str, Any]] = {
    "plain": ("/plain", envelope({"n": 3, "text": "é", "deep": {"a": [1, 2]}})),
    "extra keys of auth_data": ("/plain", envelope({"n": 1}, session_id=None)),
    "parsed": ("/parsed", envelope({"text": "hi"})),
    "formed": ("/formed", envelope({"q": 1})),
    "remote": ("/add", envelope({"a": 1})),
    "stream": ("/stream", envelope({"q": 1})),
    "a model server's own error": ("/broken", envelope({"q": 1})),
    "no such route": ("/nowhere", envelope({})),
}
#: the same status, and everything that the peer's body says; ours says more
TYPED: dict[str, tuple[str, Any]] = {
    "no payload": ("/plain", {"auth_data": AUTH}),
    "no auth_data fields": ("/plain", {"auth_data": {"cost": 1}, "payload": {}}),
    "a parser's fault": ("/parsed", envelope({})),
    "a function that raises": ("/add", envelope({"wrong": 1})),
    "no JSON": ("/plain", b"{"),
}


def ask(port: int, route: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", route, sent, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    finally:
        connection.close()


def test_the_same_answers(tmp_path: Path) -> None:
    with (
        demo_programs.running("supervisor.demo.engine", tmp_path / "engine.log") as engine,
        on_the_bench(tmp_path, TEXT) as bench,
    ):
        url = f"http://127.0.0.1:{engine.listening().port}"
        bench.until_ready()
        ours = int(bench.facts()["worker_url"].rpartition(":")[2])
        with the_peer(tmp_path / "peer", tmp_path / "worker.py", url, UNSECURED="true") as theirs:
            for name, (route, body) in SAME.items():
                status, headers, answer = ask(theirs, route, body)
                got_status, got_headers, got = ask(ours, route, body)
                assert got_status == status, (name, got, answer)
                if status == 404:
                    continue  # their text, our JSON
                if name in ("plain", "extra keys of auth_data"):
                    # theirs is parsed and written anew, ours goes on as it came
                    assert told(got) == told(answer), name
                else:
                    assert got == answer, name
                for header in ("content-type", "x-model", "x-formed"):
                    if header in headers:
                        assert media(got_headers[header]) == media(headers[header]), (name, header)
            for name, (route, body) in TYPED.items():
                status, _, answer = ask(theirs, route, body)
                got_status, _, got = ask(ours, route, body)
                if name == "no auth_data fields":
                    assert (status, got_status) == (422, 200)  # unsigned requests need none here
                    continue
                said = json.loads(got)
                assert said["error"]["kind"] and said["error"]["message"], name
                assert got_status == status, (name, got, answer)
                for key, value in json.loads(answer or b"{}").items():
                    assert key == "error" or said[key] == value, (name, said)
            assert one_session(ours) == one_session(theirs)


def one_session(port: int) -> list[tuple[str, int, str]]:
    """The life of a session: each step's status, and the body of the good ones."""
    steps: list[tuple[str, int, str]] = []
    known: dict[str, Any] = {"session_auth": AUTH, "session_id": "none"}

    def step(route: str, body: Any) -> None:
        status, _, answer = ask(port, route, body)
        text = answer.decode() if status < 400 else ""
        if route == "/session/create" and status == 201:
            known["session_id"] = json.loads(answer)["session_id"]
        text = text.replace(known["session_id"], "ID")
        text = re.sub(r'"(expiration|created_at)": [0-9.]+', r'"\1": TIME', text)
        steps.append((route, status, text))

    payload = {"lifetime": 9, "on_close_route": "/closed", "on_close_payload": {"b": 1, "a": "é"}}
    step("/session/health", known)
    step("/session/end", known)
    step("/session/create", envelope(payload))
    step("/session/create", envelope(payload))  # there may be one
    step("/session/get", known)
    step("/session/health", known)
    step("/formed", envelope({"q": 1}, session_id=known["session_id"]))
    step("/session/end", known | {"session_auth": {**AUTH, "cost": 2}})
    step("/session/get", {"session_id": known["session_id"]})
    step("/session/end", {"session_auth": AUTH})
    step("/session/end", known)
    step("/session/health", known)
    step("/session/get", known)
    step("/formed", envelope({"q": 1}, session_id=known["session_id"]))
    step("/session/create", b"{")
    return steps


def told(answer: bytes) -> Any:
    parsed = json.loads(answer)
    return {key: parsed[key] for key in ("path", "got")}


def media(value: str) -> str:
    return value.partition(";")[0]
