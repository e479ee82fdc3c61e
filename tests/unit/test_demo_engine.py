"""The demo engine: its rules in this process, its behaviour as the real program."""

from __future__ import annotations

import base64
import http.client
import json
import stat
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from supervisor.demo.engine_faults import EngineFault, FaultSwitch
from supervisor.demo.record import Record
from tests.kit.demo_programs import Program, running

MODULE = "supervisor.demo.engine"
TOKEN = "very-secret-token"
ROUTE = {"endpoint": "local", "api_key": "k", "cost": 256, "request_idx": 0, "replay_timeout": 60}
WORKER_IDS = count(1)


def report(worker: int, **changed: Any) -> dict[str, Any]:
    """A report as a worker posts it."""
    return {
        "id": worker,
        "mtoken": TOKEN,
        "version": "0",
        "loadtime": 0.0,
        "new_load": 0.0,
        "cur_load": 0.0,
        "rej_load": 0.0,
        "max_perf": 0.0,
        "cur_perf": 0.0,
        "error_msg": "",
        "num_requests_working": 0,
        "num_requests_recieved": 0,
        "additional_disk_usage": 0.1,
        "disk_usage": 12.5,
        "working_request_idxs": [],
        "cur_capacity": 0,
        "max_capacity": 0,
        "url": f"http://127.0.0.1:{4000 + worker}",
        **changed,
    }


def verify(pem: str, signature: str, text: str) -> None:
    """Raises InvalidSignature."""
    key = serialization.load_pem_public_key(pem.encode())
    assert isinstance(key, rsa.RSAPublicKey) and key.key_size == 2048
    key.verify(base64.b64decode(signature), text.encode(), padding.PKCS1v15(), hashes.SHA256())


def public_key(engine: Program) -> str:
    status, body = engine.ask("GET", "/pubkey/")
    assert status == 200
    return body.decode()


# ----------------------------------------------------------------------------------- rules


def test_the_record_is_bounded_in_entries_and_bytes() -> None:
    record = Record(max_entries=3, max_bytes=200)
    for seq in range(1, 6):
        record.add(seq, {"text": "x"})
    assert [json.loads(bytes(entry))["seq"] for entry in record.since(0)] == [3, 4, 5]
    assert [json.loads(bytes(entry))["seq"] for entry in record.since(4)] == [5]
    record.add(6, {"text": "x" * 150})
    assert [json.loads(bytes(entry))["seq"] for entry in record.since(0)] == [5, 6]
    record.add(7, {"text": "x" * 500})
    assert record.since(0) == [], "what is larger than the bound is not kept at all"


def test_a_fault_ends_after_its_count_or_its_time() -> None:
    switch = FaultSwitch()
    assert switch.take("/route/", 0.0).kind == "none"
    switch.set(EngineFault("down", count=2, path="/route"), 0.0)
    kinds = [switch.take(path, 0.0).kind for path in ("/pubkey/", "/route/", "/route/", "/route/")]
    assert kinds == ["none", "down", "down", "none"]
    switch.set(EngineFault("lose", for_s=5), 10.0)
    assert [switch.take("/x", now).kind for now in (10.0, 14.9, 15.0)] == ["lose", "lose", "none"]


# ----------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One engine with a token for the tests that leave it as they found it."""
    log = tmp_path_factory.mktemp("engine") / "log"
    flags = ("--mtoken", TOKEN, "--reqnum-start", "100", "--endpoint-name", "quay")
    with running(MODULE, log, *flags) as program:
        yield program.listening()
        assert program.stop() == 0
        assert program.printed.splitlines() == [f"listening on http://127.0.0.1:{program.port}"]


@pytest.fixture
def worker(engine: Program) -> Iterator[int]:
    """The id of a worker that nobody else uses; in error afterwards, so that it gets nothing."""
    id = next(WORKER_IDS)
    yield id
    engine.post("/worker_status/", report(id, error_msg="the test is over"))


def cursor(engine: Program) -> int:
    return int(engine.get("/demo/record")["next"])


def test_a_client_is_sent_to_a_ready_worker_with_a_valid_signature(
    engine: Program, worker: int
) -> None:
    waiting = engine.post("/route/", ROUTE)
    assert set(waiting) == {"request_idx", "status"}
    assert "no ready worker" in waiting["status"]

    engine.post("/worker_status/", report(worker))
    again = ROUTE | {"request_idx": waiting["request_idx"]}
    assert engine.post("/route/", again)["request_idx"] == waiting["request_idx"]

    engine.post("/worker_status/", report(worker, loadtime=12.5, max_perf=200.0))
    route = engine.post("/route/", again)
    url = f"http://127.0.0.1:{4000 + worker}"
    assert route | {"signature": "", "reqnum": 0} == {
        "url": url,
        "signature": "",
        "cost": 256,
        "endpoint": "local",
        "reqnum": 0,
        "request_idx": waiting["request_idx"],
    }
    verify(public_key(engine), route["signature"], json.dumps({"url": url}, indent=4))
    with pytest.raises(InvalidSignature):
        verify(public_key(engine), route["signature"], json.dumps({"url": url + "/"}, indent=4))
    following = engine.post("/route/", ROUTE)
    assert following["reqnum"] == route["reqnum"] + 1 >= 101
    assert following["request_idx"] > route["request_idx"]
    assert following["signature"] == route["signature"]

    engine.post("/worker_status/", report(worker, error_msg="out of memory"))
    assert "status" in engine.post("/route/", ROUTE)


def test_the_least_loaded_worker_is_chosen(engine: Program, worker: int) -> None:
    other = next(WORKER_IDS)
    engine.post("/worker_status/", report(worker, loadtime=1, max_perf=100, cur_load=500))
    engine.post("/worker_status/", report(other, loadtime=1, max_perf=10, cur_load=10))
    costs = {"cost": 20.0}
    ports = [engine.post("/route/", ROUTE | costs)["url"][-4:] for _ in range(4)]
    # Waits 5 s and 1 s; each route there adds 2 s to the second, 0.2 s to the first.
    assert ports == [str(4000 + id) for id in (other, other, worker, other)]
    engine.post("/worker_status/", report(other, error_msg="gone"))


def test_the_2024_signature_is_over_everything(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--scheme", "2024") as program:
        program.listening()
        program.post("/worker_status/", report(5, loadtime=1))
        for cost in (100, 100.0, 0.25):
            route = program.post("/route/", ROUTE | {"cost": cost})
            signed = {name: route[name] for name in ("cost", "endpoint", "reqnum", "url")}
            assert json.dumps(signed["cost"]) == json.dumps(cost)
            verify(public_key(program), route["signature"], json.dumps(signed, indent=4))


@pytest.mark.parametrize("path", ["/worker_status/", "/delete_requests/"])
def test_the_token_is_checked_and_never_shown(engine: Program, worker: int, path: str) -> None:
    since = cursor(engine)
    body = report(worker) if path == "/worker_status/" else {"worker_id": worker, "requests": []}
    codes = [engine.ask("POST", path, body | {"mtoken": sent})[0] for sent in ("", "x", "é", TOKEN)]
    assert codes == [401, 403, 403, 200]
    record = engine.get(f"/demo/record?since={since}")
    assert all(entry["mtoken"] == "***" for entry in record["status"])
    assert TOKEN not in json.dumps(engine.get("/demo/record"))
    assert TOKEN not in engine.printed


def test_what_was_reported_can_be_looked_up_from_a_cursor(engine: Program, worker: int) -> None:
    since = cursor(engine)
    before = time.time()
    sent = report(worker, loadtime=2.5, cur_load=7.0, working_request_idxs=[3, 4])
    engine.post("/worker_status/", sent)
    ended = {
        "request_idx": 3,
        "success": True,
        "status": "Success",
        "entered_queue_at": 1.5,
        "work_started_at": 2.5,
        "work_completed_at": 3.5,
    }
    post = {"worker_id": worker, "mtoken": TOKEN, "requests": [ended, ended | {"request_idx": 4}]}
    engine.post("/delete_requests/", post)
    record = engine.get(f"/demo/record?since={since}")
    (status,) = record["status"]
    assert before <= status.pop("received_at") <= time.time()
    assert status == sent | {"mtoken": "***", "seq": since + 1}
    assert [entry["request_idx"] for entry in record["requests"]] == [3, 4]
    assert ended.items() <= record["requests"][0].items()
    assert record["requests"][0]["worker_id"] == worker
    assert record["next"] == since + 3
    assert record["workers"][str(worker)]["cur_load"] == 7.0
    later = engine.get(f"/demo/record?since={record['next'] - 1}")
    assert (later["status"], len(later["requests"])) == ([], 1)


def test_endpoints_and_workers_are_listed_for_the_official_client(
    engine: Program, worker: int
) -> None:
    engine.post("/worker_status/", report(worker, loadtime=1, max_perf=3, cur_load=2))
    (endpoint,) = engine.get("/api/v0/endptjobs/?client_id=me")["results"]
    assert endpoint["endpoint_name"] == "quay"
    assert {"id", "api_key", "user_id", "created_at"} <= set(endpoint)
    listed = engine.post("/get_endpoint_workers/", {"id": endpoint["id"], "api_key": "k"})
    (row,) = [row for row in listed if row["id"] == worker]
    assert (row["status"], row["cur_load"], row["max_perf"]) == ("ready", 2.0, 3.0)
    assert engine.ask("POST", "/get_endpoint_workers/", {"id": 99})[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/route/", b"", 400, "no valid JSON"),
        ("/route/", b"\xff", 400, "no valid JSON"),
        ("/route/", {"cost": 1}, 422, "endpoint"),
        ("/route/", ROUTE | {"cost": -1}, 422, "$.cost"),
        ("/route/", b'{"endpoint": "x", "cost": NaN}', 400, "no valid JSON"),
        ("/worker_status/", {"id": "five"}, 422, "$.id"),
        ("/worker_status/", {"id": 1, "cur_load": -0.5}, 422, "$.cur_load"),
        ("/delete_requests/", {"worker_id": 1, "requests": [{}]}, 422, "request_idx"),
        ("/demo/fault", {"kind": "boredom"}, 422, "boredom"),
        ("/worker_status/", b"x" * (8 * 2**20 + 1), 413, "exceeded"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_bad_input_is_refused_with_the_reason(
    engine: Program, path: str, body: Any, status: int, says: str
) -> None:
    got, answer = engine.ask("POST", path, body)
    assert got == status
    assert says in json.loads(answer)["error"]["message"]


def test_a_bad_cursor_is_refused(engine: Program) -> None:
    for since in ("-1", "x", "9" * 30):
        assert engine.ask("GET", f"/demo/record?since={since}")[0] == 422


# ---------------------------------------------------------------------------------- faults


def test_a_dropped_answer_was_processed_and_a_lost_one_was_not(
    engine: Program, worker: int
) -> None:
    for kind, kept in (("drop_after_accept", 1), ("lose", 0)):
        since = cursor(engine)
        engine.post("/demo/fault", {"kind": kind, "count": 1, "path": "/worker_status/"})
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            engine.ask("POST", "/worker_status/", report(worker))
        assert len(engine.get(f"/demo/record?since={since}")["status"]) == kept
        engine.post("/worker_status/", report(worker))


def test_the_engine_can_be_down_slow_and_talk_garbage(engine: Program) -> None:
    engine.post("/demo/fault", {"kind": "down", "path": "/route/"})
    assert engine.ask("POST", "/route/", ROUTE)[0] == 503
    assert engine.ask("GET", "/pubkey/")[0] == 200
    engine.post("/demo/fault", {"kind": "garbage", "count": 1})
    status, body = engine.ask("GET", "/pubkey/")
    assert (status, b"PUBLIC KEY" in body) == (200, False)
    engine.post("/demo/fault", {"kind": "slow", "delay_s": 0.2, "count": 1})
    before = time.monotonic()
    assert engine.ask("GET", "/pubkey/")[0] == 200
    assert time.monotonic() - before >= 0.2
    engine.post("/demo/fault", {"kind": "slow", "delay_s": 3000})
    connection = engine.connect()
    connection.request("GET", "/pubkey/")
    connection.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)
    connection.close()
    engine.post("/demo/fault", {"kind": "none"})
    assert engine.ask("GET", "/pubkey/")[0] == 200


# ------------------------------------------------------------------------------------ keys


def test_a_rotated_key_signs_from_then_on(engine: Program, worker: int) -> None:
    old = public_key(engine)
    engine.post("/worker_status/", report(worker, loadtime=1))
    engine.post("/route/", ROUTE)
    new = engine.post("/demo/rotate_key", {})["public_key"]
    assert new == public_key(engine) != old
    route = engine.post("/route/", ROUTE)
    text = json.dumps({"url": route["url"]}, indent=4)
    verify(new, route["signature"], text)
    with pytest.raises(InvalidSignature):
        verify(old, route["signature"], text)


def test_a_key_in_a_file_outlives_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "engine.pem"
    with running(MODULE, tmp_path / "log", "--key", str(path)) as program:
        program.listening()
        rotated = program.post("/demo/rotate_key", {})["public_key"]
        assert program.stop() == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with running(MODULE, tmp_path / "log", "--key", str(path)) as program:
        program.listening()
        assert public_key(program) == rotated
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["engine.pem", "log"]


@pytest.mark.parametrize("content", ["rubbish", "elliptic"])
def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.pem"
    if content == "elliptic":
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(pem)
    else:
        path.write_text(content)
    with running(MODULE, tmp_path / "log", "--key", str(path)) as program:
        assert program.wait() == 78
        assert f"cannot use the key file {path}" in program.printed
        assert "Traceback" not in program.printed
