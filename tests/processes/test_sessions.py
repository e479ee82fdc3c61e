"""Sessions on the whole worker: what clients and the engine see, and what they survive."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervisor.ports import free_port
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, get_json

NO_SUCH = "0" * 32


def worker_with_echo(directory: Path, *settings: str, processes: int = 2) -> Worker:
    """Two ingress processes, so that every call may meet another one."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "tests.kit.echo_model", str(port), str(directory / "log")]
    toml = (
        f"[worker]\nprocesses = {processes}\n[model]\ncommand = {json.dumps(command)}\n"
        f'url = "http://127.0.0.1:{port}"\nhealth = "/health"\n'
    )
    routes = '[[route]]\npath = "/run"\nworkload = { field = "work" }\n[[route]]\npath = "/*"\n'
    worker = Worker(directory, toml=toml, routes=routes, settings=settings)
    worker.model_port = port
    return worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = worker_with_echo(tmp_path, "limits.sessions=2")
    try:
        yield worker.start().wait_ready()
    finally:
        end(worker)


def post(worker: Worker, path: str, body: Any, port: int = 0) -> tuple[int, Any]:
    """One request on a connection of its own."""
    url = urlsplit(worker.url)
    connection = http.client.HTTPConnection("127.0.0.1", port or url.port, timeout=30)
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, raw, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def create(worker: Worker, **payload: Any) -> dict[str, Any]:
    """Open a session; returns what its client knows of it."""
    auth = worker.auth(cost=25.0)
    status, told = post(worker, "/session/create", {"auth_data": auth, "payload": payload})
    assert status == 201, told
    assert set(told) == {"session_id", "expiration"}
    return {"session_id": told["session_id"], "session_auth": auth, "told": told}


def named(session: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The body of get, health and end."""
    body = {name: session[name] for name in ("session_id", "session_auth")}
    return body | changes


def run(worker: Worker, session: dict[str, Any], **payload: Any) -> tuple[int, Any]:
    """A request inside it."""
    body = {
        "auth_data": session["session_auth"],
        "payload": payload,
        "session_id": session["session_id"],
    }
    return post(worker, "/run", body)


def seen(worker: Worker, path: str) -> list[Any]:
    """What the model server got at a path."""
    told = get_json(f"http://127.0.0.1:{worker.model_port}/seen")
    return [json.loads(body) for at, body in told if at == path]


def last_report(worker: Worker) -> dict[str, Any]:
    entry = worker.record()["status"][-1]
    report: dict[str, Any] = entry.get("report", entry)
    return report


def test_a_session_from_its_beginning_to_its_end(worker: Worker) -> None:
    begun = time.time()
    session = create(
        worker, lifetime=30, on_close_route="/closed", on_close_payload={"why": "é", "n": 1.5}
    )
    assert begun + 29 < session["told"]["expiration"] < time.time() + 31
    status, told = post(worker, "/session/get", named(session))
    assert status == 200
    assert list(told) == [
        "session_id", "auth_data", "lifetime", "expiration", "created_at", "on_close_route",
        "on_close_payload",
    ]  # fmt: skip
    assert told["auth_data"] == session["session_auth"]
    assert (told["lifetime"], told["on_close_route"]) == (30, "/closed")
    assert told["on_close_payload"] == {"why": "é", "n": 1.5}
    assert told["expiration"] == session["told"]["expiration"]
    assert post(worker, "/session/health", named(session)) == (200, {"ok": True})

    for _ in range(4):
        assert run(worker, session, work=3)[0] == 200
    _, told = post(worker, "/session/get", named(session))
    assert told["expiration"] == pytest.approx(session["told"]["expiration"] + 4 * 30, abs=0.01)

    ended = {"ended": True, "removed_session": session["session_id"]}
    assert post(worker, "/session/end", named(session)) == (200, ended)
    assert seen(worker, "/closed") == [{"why": "é", "n": 1.5, "session_id": session["session_id"]}]
    status, told = run(worker, session)
    assert (status, told["error"]["kind"]) == (410, "invalid_session")
    for call in ("get", "end"):
        status, told = post(worker, f"/session/{call}", named(session))
        assert (status, told["error"]["kind"]) == (400, "unknown_session")
    assert post(worker, "/session/health", named(session)) == (200, {"ok": False})


def test_the_engine_sees_one_request(worker: Worker) -> None:
    session = create(worker)
    idx = session["session_auth"]["request_idx"]
    wait_until(lambda: last_report(worker)["working_request_idxs"] == [idx], what="it works")
    report = last_report(worker)
    assert (report["cur_load"], report["num_requests_working"]) == (25.0, 1)
    received = report["num_requests_recieved"]
    before = worker.status()["load"]["served"]
    for _ in range(3):
        assert run(worker, session, work=7)[0] == 200
    wait_until(lambda: worker.status()["load"]["served"] == before + 21, what="their work")
    assert last_report(worker)["num_requests_recieved"] == received
    assert worker.record()["requests"] == []
    assert post(worker, "/session/end", named(session))[0] == 200
    rows = wait_until(lambda: worker.record()["requests"], what="its row")
    assert [(row["request_idx"], row["status"]) for row in rows] == [(idx, "Success")]
    assert 0 < rows[0]["entered_queue_at"] <= rows[0]["work_started_at"]
    assert rows[0]["work_started_at"] < rows[0]["work_completed_at"]
    wait_until(lambda: last_report(worker)["cur_load"] == 0, what="no load")
    wait_until(lambda: worker.status()["load"]["served"] == before + 21 + 25, what="its work")


def test_there_are_only_so_many(worker: Worker) -> None:
    first, _ = create(worker), create(worker)
    auth = worker.auth()
    status, told = post(worker, "/session/create", {"auth_data": auth, "payload": {}})
    assert (status, told["error"]["kind"]) == (429, "too_many_sessions")
    rows = wait_until(lambda: worker.record()["requests"], what="its row")
    assert [(row["request_idx"], row["status"]) for row in rows] == [
        (auth["request_idx"], "Rejected")
    ]
    assert post(worker, "/session/end", named(first))[0] == 200
    create(worker)


def test_what_is_over_is_closed_with_its_requests(worker: Worker) -> None:
    session = create(worker, lifetime=0.2, on_close_route="/closed")
    wait_until(lambda: seen(worker, "/closed"), what="the expired one is closed")
    assert seen(worker, "/closed") == [{"session_id": session["session_id"]}]
    assert post(worker, "/session/health", named(session)) == (200, {"ok": False})

    session = create(worker)
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(run(worker, session, hang="hang")))
    thread.start()
    wait_until(lambda: {"hang": "hang"} in seen(worker, "/run"), what="it runs")
    assert post(worker, "/session/end", named(session))[0] == 200
    thread.join(30)
    ((status, told),) = answers
    assert (status, told["error"]["kind"]) == (410, "invalid_session")
    # both sessions were served, and the request was not
    wait_until(
        lambda: (at := worker.status()["load"])["load"] == 0 and at["served"] == 50.0,
        what="the accounts",
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_parameter"),
        (b'{"session_id": 5}', "invalid_parameter"),
        (b"{}", "missing_parameter"),
        (b'{"session_id": ""}', "missing_parameter"),
        (b'{"session_id": "x", "session_auth": "y"}', "invalid_parameter"),
        (b'{"session_id": "x", "session_auth": {"a": 1e999}}', "invalid_json"),
        (b'{"session_id": "x", "session_auth": {"a": NaN}}', "invalid_json"),
        (
            b'{"session_id": "x", "session_auth": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
            "invalid_json",
        ),
        (b'{"session_id": "\xff"}', "invalid_json"),
    ],
)
def test_a_malformed_call(shared: Worker, body: bytes, kind: str) -> None:
    for call in ("get", "health", "end"):
        status, told = post(shared, f"/session/{call}", body)
        assert (status, told["error"]["kind"]) == (422, kind), (call, told)


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        ({"lifetime": 0}, "lifetime"),
        ({"lifetime": -1}, "lifetime"),
        ({"lifetime": "60"}, "lifetime"),
        ({"lifetime": 1e300}, "lifetime"),
        ({"on_close_route": "http://169.254.169.254/latest"}, "on_close_route"),
        ({"on_close_route": "//elsewhere/x"}, "on_close_route"),
        ({"on_close_route": "/a b"}, "on_close_route"),
        ({"on_close_route": "/a\r\nx: y"}, "on_close_route"),
        ({"on_close_route": 7}, "on_close_route"),
    ],
)
def test_a_malformed_creation(shared: Worker, payload: dict[str, Any], place: str) -> None:
    body = {"auth_data": shared.auth(), "payload": payload}
    status, told = post(shared, "/session/create", body)
    assert (status, told["error"]["kind"]) == (422, "invalid_parameter")
    assert place in told["error"]["message"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """For what changes nothing."""
    worker = worker_with_echo(tmp_path_factory.mktemp("shared"), processes=1)
    try:
        yield worker.start().wait_ready()
    finally:
        end(worker)


def test_nobody_else_gets_in(shared: Worker) -> None:
    session = create(shared)
    forged = session["session_auth"] | {"signature": "AAAA"}
    for call in ("get", "health", "end"):
        for auth in (forged, {}, None, session["session_auth"] | {"more": 1}):
            status, told = post(shared, f"/session/{call}", named(session, session_auth=auth))
            assert (status, told["error"]["kind"]) == (401, "bad_token")
            assert session["session_auth"]["signature"] not in json.dumps(told)
    status, told = post(shared, "/session/create", {"auth_data": forged, "payload": {}})
    assert (status, told["error"]["kind"]) == (401, "bad_signature")
    status, told = post(shared, "/session/create", {"payload": {}})
    assert status == 422 and "auth_data" in told
    big = {"auth_data": session["session_auth"], "payload": {"on_close_payload": "x" * 70_000}}
    assert post(shared, "/session/create", big)[0] == 413
    # written another way, it is the same
    cost = float(session["session_auth"]["cost"])
    same = dict(reversed(list((session["session_auth"] | {"cost": cost}).items())))
    assert post(shared, "/session/health", named(session, session_auth=same))[1] == {"ok": True}
    assert post(shared, "/session/end", named(session))[0] == 200
    assert session["session_id"] not in shared.printed
    assert session["session_auth"]["signature"] not in shared.printed


def test_an_end_outlives_whoever_it_needs(tmp_path: Path) -> None:
    """Its caller, who gets nobody else's answer; and the adapter, whose successor ends it."""
    worker = worker_with_echo(tmp_path, processes=1).start()
    try:
        worker.wait_ready()
        slow = {"on_close_route": "/closed", "on_close_payload": {"hang": "hang"}}
        session = create(worker, **slow)
        calls = [threading.Thread(target=try_to_end, args=(worker, session, []))]
        calls[0].start()
        wait_until(lambda: seen(worker, "/closed"), what="its end began")
        worker.wait_replaced("ingress-0", worker.kill("ingress-0"))
        answers: list[Any] = []
        calls.append(threading.Thread(target=try_to_end, args=(worker, session, answers)))
        calls[1].start()
        wait_until(lambda: worker.status()["load"]["requests"], what="the accounts")
        worker.wait_replaced("backend_adapter", worker.kill("backend_adapter"))
        wait_until(lambda: len(seen(worker, "/closed")) == 2, what="it is told again")
        for call in calls:
            call.join(30)
        assert answers == [(200, {"ended": True, "removed_session": session["session_id"]})]
        status, told = post(worker, "/session/end", named(session))
        assert (status, told["error"]["kind"]) == (400, "unknown_session")
        assert len(worker.record()["requests"]) == 1
    finally:
        end(worker)


def try_to_end(worker: Worker, session: dict[str, Any], answers: list[Any]) -> None:
    with suppress(OSError, http.client.HTTPException):
        answers.append(post(worker, "/session/end", named(session)))


def test_an_adapter_that_ends_already_closes_what_is_open(tmp_path: Path) -> None:
    """It was told to make room for another one; then that none will come."""
    worker = worker_with_echo(tmp_path, "worker.drain_s=20", processes=1).start()
    try:
        worker.wait_ready()
        session = create(worker, on_close_route="/closed")
        hanging = create(worker, on_close_route="/slow", on_close_payload={"hang": "hang"})
        threading.Thread(target=try_to_end, args=(worker, hanging, [])).start()
        wait_until(lambda: seen(worker, "/slow"), what="an end that takes long")
        old = worker.pid("backend_adapter")
        threading.Thread(target=worker.command, args=("restart", "backend_adapter")).start()
        wait_until(
            lambda: worker.members()["backend_adapter"]["state"] == "stopping", what="it drains"
        )
        assert worker.pid("backend_adapter") == old
        assert post(worker, "/session/health", named(session)) == (200, {"ok": True})
        worker.stop()
    finally:
        end(worker)
    assert (tmp_path / "log").read_text().count("POST /closed") == 1


@pytest.mark.parametrize("name", ["ingress-0", "backend_adapter", "reporter"])
def test_a_session_survives_a_crash(worker: Worker, name: str) -> None:
    session = create(worker, lifetime=40, on_close_route="/closed", on_close_payload=[1])
    for _ in range(3):
        worker.wait_replaced(name, worker.kill(name, signal.SIGKILL))
        wait_until(lambda: run(worker, session)[0] == 200, what="a request inside it")
    _, told = post(worker, "/session/get", named(session))
    assert told["expiration"] > session["told"]["expiration"]
    assert wait_until(lambda: last_report(worker)["cur_load"] == 25.0, what="its load")
    assert post(worker, "/session/end", named(session))[0] == 200
    assert seen(worker, "/closed") == [{"payload": [1], "session_id": session["session_id"]}]
    wait_until(lambda: last_report(worker)["cur_load"] == 0.0, what="no load")
    worker.wait_replaced("backend_adapter", worker.kill("backend_adapter"))
    assert post(worker, "/session/health", named(session)) == (200, {"ok": False})


def test_the_end_of_the_worker_closes_them(tmp_path: Path) -> None:
    worker = worker_with_echo(tmp_path, "worker.drain_s=5").start()
    try:
        worker.wait_ready()
        session = create(worker, on_close_route="/closed")
        old = worker.pid("backend_adapter")
        worker.command("restart", "backend_adapter")
        worker.wait_replaced("backend_adapter", old)
        assert post(worker, "/session/health", named(session)) == (200, {"ok": True})
        assert seen(worker, "/closed") == []
        assert worker.stop() == 0
    finally:
        end(worker)
    assert (tmp_path / "log").read_text().count("POST /closed") == 1


@pytest.mark.parametrize("ends", ["restart", "crash"])
def test_a_stop_amid_a_restart_of_the_adapter_closes_them(tmp_path: Path, ends: str) -> None:
    """Only the next adapter knows of them by then."""
    worker = worker_with_echo(tmp_path, processes=1).start()
    try:
        worker.wait_ready()
        create(worker, on_close_route="/closed")
        old = worker.pid("backend_adapter")
        if ends == "restart":
            worker.command("restart", "backend_adapter")
        else:
            worker.kill("backend_adapter")
        wait_until(lambda: not Path(f"/proc/{old}").exists(), what="the adapter to be gone")
        assert worker.stop() == 0
    finally:
        end(worker)
    assert (tmp_path / "log").read_text().count("POST /closed") == 1


def test_webhooks_end_sessions_from_this_machine(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    worker = worker_with_echo(tmp_path, f"worker.http_port={port}").start()
    try:
        worker.wait_ready()
        session = create(worker)
        status, told = post(worker, "/run", {"payload": {}}, port)
        assert (status, told["error"]["kind"]) == (404, "unknown_route")
        assert post(worker, "/session/end", named(session, session_auth={}), port)[0] == 401
        assert post(worker, "/session/end", named(session), port)[0] == 200
        assert post(worker, "/session/health", named(session)) == (200, {"ok": False})
        assert worker.stop() == 0
    finally:
        end(worker)
