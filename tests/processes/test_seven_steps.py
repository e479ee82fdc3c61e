"""The seven steps on real processes: route, sign, post, validate, forward, answer, report."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervisor import process_tree
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, post_json, running


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


def post(
    worker: Worker, route: str, body: Any, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(worker.url).netloc, timeout=30)
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", route, raw, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def envelope(worker: Worker, **payload: Any) -> dict[str, Any]:
    return {"auth_data": worker.auth(), "payload": payload}


def test_an_answer_comes_back_as_the_model_server_gave_it(worker: Worker) -> None:
    payload = {"inputs": "the harbour", "parameters": {"max_new_tokens": 7, "seed": 3}}
    status, headers, body = post(worker, "/generate", envelope(worker, **payload))
    assert status == 200, body
    direct = post_json(f"http://127.0.0.1:{worker.model_port}/generate", payload)
    assert json.loads(body) == direct
    assert headers["content-type"].startswith("application/json")


def test_a_stream_arrives_in_pieces_and_ends_cleanly(worker: Worker) -> None:
    body = envelope(worker, prompt="a lighter", max_tokens=20, stream=True, seed=1)
    status, headers, raw = post(worker, "/v1/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [line for line in raw.split(b"\n\n") if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]"
    assert len(events) > 20


def test_the_engine_hears_of_the_request_and_its_load(worker: Worker) -> None:
    auth = worker.auth()
    served_before = sum(s["cur_perf"] for s in reports(worker))
    auth["request_idx"] = 4242
    payload = {"inputs": "x", "parameters": {"max_new_tokens": 11}}
    assert post(worker, "/generate", {"auth_data": auth, "payload": payload})[0] == 200

    def told() -> list[dict[str, Any]]:
        return [r for r in worker.record()["requests"] if r["request_idx"] == 4242]

    (row,) = wait_until(told, what="the ended request to be reported")
    assert row["success"] and row["status"] == "Success"
    assert row["entered_queue_at"] <= row["work_started_at"] <= row["work_completed_at"]
    wait_until(
        lambda: sum(s["cur_perf"] for s in reports(worker)) >= served_before + 11,
        what="the served workload to be reported",
    )
    newest = reports(worker)[-1]
    assert newest["cur_load"] == 0 and newest["error_msg"] == ""
    assert newest["num_requests_working"] == 0 and newest["working_request_idxs"] == []


def reports(worker: Worker) -> list[dict[str, Any]]:
    return [entry.get("report", entry) for entry in worker.record()["status"]]


def test_the_load_time_is_told_once(worker: Worker) -> None:
    assert sum(report["loadtime"] > 0 for report in reports(worker)) == 1


@pytest.mark.parametrize(
    ("change", "kind", "status"),
    [
        (lambda auth: auth.update(url="http://10.0.0.1:1"), "foreign_url", 401),
        (lambda auth: auth.update(signature="AAAA" + auth["signature"][4:]), "bad_signature", 401),
        (lambda auth: auth.pop("signature"), "missing_parameter", 422),
        (lambda auth: auth.pop("reqnum"), "missing_parameter", 422),
    ],
)
def test_what_the_engine_did_not_sign_is_refused(
    worker: Worker, change: Any, kind: str, status: int
) -> None:
    body = envelope(worker, inputs="x")
    change(body["auth_data"])
    before = model_requests(worker)
    got, _, raw = post(worker, "/generate", body)
    assert got == status, raw
    assert json.loads(raw)["error"]["kind"] in (kind, "bad_signature")
    assert model_requests(worker) == before


def model_requests(worker: Worker) -> int:
    stats = get_json(f"http://127.0.0.1:{worker.model_port}/demo/stats")
    return int(
        sum(stats["requests"].values())
        if isinstance(stats["requests"], dict)
        else stats["requests"]
    )


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/nowhere", b"{}", 404),
        ("/generate", b"not json", 422),
        ("/generate", b'{"auth_data": {}}', 422),
        ("/generate", b"", 422),
    ],
)
def test_bad_requests_get_typed_errors(
    worker: Worker, route: str, body: bytes, status: int
) -> None:
    got, _, raw = post(worker, route, body)
    assert got == status, raw
    error = json.loads(raw)["error"]
    assert error["kind"] and error["message"]


def test_a_client_that_leaves_is_cancelled_at_the_model_server(worker: Worker) -> None:
    auth = worker.auth()
    stats = f"http://127.0.0.1:{worker.model_port}/demo/stats"
    before = get_json(stats)["cancelled"]

    async def leave() -> None:
        async with Load(worker.url, auth) as load:
            load.start("/v1/completions", {"prompt": "x", "max_tokens": 50_000, "stream": True})
            await asyncio.to_thread(
                wait_until, lambda: get_json(stats)["running"] == 1, 30.0, "the model to run it"
            )

    post_json(f"http://127.0.0.1:{worker.model_port}/demo/fault", {"kind": "none"})
    asyncio.run(leave())
    wait_until(lambda: get_json(stats)["cancelled"] > before, what="the model to see it")
    wait_until(lambda: get_json(stats)["running"] == 0, what="the model's slot to be free")
    wait_until(lambda: reports(worker)[-1]["cur_load"] == 0, what="the load to return to 0")


def test_health_pages_and_metrics_say_the_truth(worker: Worker) -> None:
    admin = worker.facts()["admin_url"]
    assert get_json(f"{admin}/healthz")["live"]
    assert get_json(f"{admin}/readyz")["ready"]
    import urllib.request

    with urllib.request.urlopen(f"{admin}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "lighterman_model_ready 1.0" in text
    counted = [line for line in text.splitlines() if line.startswith("lighterman_requests_total")]
    served = 'lighterman_requests_total{outcome="Success",route="/generate",status="2xx"}'
    assert any(line.startswith(served) for line in counted), (counted, worker.printed[-3000:])


def test_no_secret_is_printed(worker: Worker) -> None:
    signature = worker.auth()["signature"]
    assert signature not in worker.printed


def test_sigterm_drains_and_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, model_flags=("--tokens-per-second", "20")) as worker:
        auth, record = worker.auth(), f"{worker.engine}/demo/record"
        assert get_json(record)["status"]

        async def drain() -> dict[str, int]:
            async with Load(worker.url, auth) as load:
                for _ in range(5):
                    load.start("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 40}})
                await asyncio.to_thread(
                    wait_until,
                    lambda: worker.status()["queue"].get("running") == 5,
                    30.0,
                    "all to run",
                )
                worker.process.terminate()
                return dict(await load.outcomes())

        assert asyncio.run(drain()) == {"ok": 5}
        assert worker.process.wait(30) == 0
        assert process_tree.find_run(worker.run_id) == []
        assert "asked twice" not in worker.printed
