"""SIGKILL of each process while requests run: every request has one outcome, and life goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor import process_tree
from supervisor.link import DEAD_AFTER_S
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, get_json, post_json, running

PACE = ("--tokens-per-second", "25", "--load-seconds", "0.3")
UNARY: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 25}}
STREAM: dict[str, Any] = {"prompt": "x", "max_tokens": 50, "stream": True}


@contextmanager
def paced(tmp_path: Path, **options: Any) -> Iterator[Worker]:
    with running(tmp_path, model_flags=PACE, **options) as worker:
        yield worker


def stats(worker: Worker) -> dict[str, Any]:
    return dict(get_json(f"http://127.0.0.1:{worker.model_port}/demo/stats"))


async def until(condition: Any, what: str) -> None:
    await asyncio.to_thread(wait_until, condition, 60.0, what)


def reports(worker: Worker) -> list[dict[str, Any]]:
    return [entry.get("report", entry) for entry in worker.record()["status"]]


def accounted(worker: Worker) -> bool:
    """The engine has heard the end of everything: nothing works, and the sums agree."""
    told = reports(worker)
    newest = told[-1]
    return bool(newest["cur_load"] == 0 and newest["num_requests_working"] == 0)


def served(worker: Worker) -> float:
    return sum(report["cur_perf"] for report in reports(worker))


def test_kill_of_the_model_server_loses_no_request(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(50):
                load.start("/generate", UNARY)
            await until(lambda: stats(worker)["running"] == 50, "the model to run all 50")
            old = await asyncio.to_thread(worker.kill, "model")
            outcomes = await load.outcomes()
            await asyncio.to_thread(worker.wait_replaced, "model", old)
            return outcomes

    with paced(tmp_path) as worker:
        assert asyncio.run(scene(worker, worker.auth())) == {"ok": 50}
        wait_until(
            lambda: [
                bool(a["error_msg"])
                for a, b in zip(reports(worker), reports(worker)[1:])
                if bool(a["error_msg"]) != bool(b["error_msg"])
            ] == [False, True],
            what="the engine to hear an error and then that it is gone",
        )  # fmt: skip
        errors = {r["error_msg"] for r in reports(worker) if r["error_msg"]}
        assert any("signal 9" in text for text in errors), errors
        wait_until(lambda: accounted(worker), what="the accounts to settle")


def test_streams_that_had_begun_fail_visibly_when_the_model_server_dies(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> list[Any]:
        async with Load(worker.url, auth) as load:
            tasks = [load.start("/v1/completions", STREAM) for _ in range(5)]
            await until(lambda: stats(worker)["served_tokens"] > 50, "the streams to begin")
            await asyncio.to_thread(worker.kill, "model")
            return list(await asyncio.gather(*tasks))

    with paced(tmp_path) as worker:
        for outcome in asyncio.run(scene(worker, worker.auth())):
            assert outcome.kind == "broken" and outcome.status == 200
            assert b'"kind":"model_failed"' in outcome.body.rpartition(b"data: ")[2]


@pytest.mark.parametrize("name", ["backend_adapter", "reporter"])
def test_kill_of_adapter_or_reporter_loses_no_request(tmp_path: Path, name: str) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(30):
                load.start("/generate", UNARY)
            await until(lambda: stats(worker)["running"] == 30, "the model to run all 30")
            old = await asyncio.to_thread(worker.kill, name)
            outcomes = await load.outcomes()
            await asyncio.to_thread(worker.wait_replaced, name, old)
            return outcomes

    with paced(tmp_path) as worker:
        others = {n: m["pid"] for n, m in worker.members().items() if n != name}
        assert asyncio.run(scene(worker, worker.auth())) == {"ok": 30}
        assert {n: m["pid"] for n, m in worker.members().items() if n != name} == others
        wait_until(
            lambda: served(worker) >= 30 * 25 and len(worker.record()["requests"]) >= 30,
            what="everything to be reported",
        )
        wait_until(lambda: accounted(worker), what="the accounts to settle")
        wait_until(lambda: not reports(worker)[-1]["error_msg"], what="the error to be cleared")
        told = [report["error_msg"] for report in reports(worker)]
        assert any(name in text for text in told) or name == "reporter"  # who was away hears less
        rows = worker.record()["requests"]
        assert Counter(row["request_idx"] for row in rows) == Counter(range(1, 31))
        assert served(worker) == 30 * 25


def test_begun_streams_end_visibly_when_the_adapter_dies(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> list[Any]:
        async with Load(worker.url, auth) as load:
            tasks = [load.start("/v1/completions", STREAM) for _ in range(5)]
            await until(lambda: stats(worker)["served_tokens"] > 50, "the streams to begin")
            await asyncio.to_thread(worker.kill, "backend_adapter")
            return list(await asyncio.gather(*tasks))

    with paced(tmp_path) as worker:
        for outcome in asyncio.run(scene(worker, worker.auth())):
            assert outcome.kind == "broken" and outcome.status == 200
            assert b'"kind":"adapter_down"' in outcome.body.rpartition(b"data: ")[2]
        wait_until(lambda: stats(worker)["running"] == 0, what="the model's slots to be free")


def test_kill_of_ingress_frees_the_model_and_settles_the_accounts(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(20):
                load.start("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 5000}})
            await until(lambda: stats(worker)["running"] == 20, "the model to run all 20")
            await until(
                lambda: reports(worker)[-1]["num_requests_working"] == 20, "the load to be told"
            )
            old = await asyncio.to_thread(worker.kill, "ingress-0")
            outcomes = await load.outcomes()
            await asyncio.to_thread(worker.wait_replaced, "ingress-0", old)
            return outcomes

    with paced(tmp_path) as worker:
        auth = worker.auth()
        assert asyncio.run(scene(worker, auth)) == {"broken": 20}
        wait_until(lambda: stats(worker)["running"] == 0, what="the model's slots to be free")
        wait_until(lambda: accounted(worker), what="the accounts to settle")
        rows = worker.record()["requests"]
        assert Counter(r["request_idx"] for r in rows) == Counter(range(1, 21))
        assert {r["status"] for r in rows} == {"Cancelled"}

        async def again() -> Counter[str]:
            async with Load(worker.url, auth) as load:
                load.start("/generate", UNARY)
                return await load.outcomes()

        assert asyncio.run(again()) == {"ok": 1}


def test_a_frozen_child_is_killed_and_replaced(tmp_path: Path) -> None:
    with paced(tmp_path) as worker:
        for name in ("backend_adapter", "ingress-0", "reporter"):
            old = worker.kill(name, signal.SIGSTOP)
            worker.wait_replaced(name, old)
            assert "no heartbeat" in worker.printed


def test_kill_of_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    with paced(tmp_path) as worker:
        assert len(worker.leftovers()) >= 5
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        wait_until(lambda: process_tree.find_run(worker.run_id) == [], what="everything to end")
        worker.start()
        worker.wait_ready()


def test_a_worker_that_died_whole_is_swept_by_its_successor(tmp_path: Path) -> None:
    """Nobody is left who could: the model server lives on, and holds the GPU and its port."""
    with paced(tmp_path) as worker:
        directory = Path(worker.facts()["runtime_dir"])
        names = ("backend_adapter", "ingress-0", "reporter")
        ours = [worker.process.pid, *(worker.pid(name) for name in names)]
        model, old_run = worker.pid("model"), worker.run_id
        for pid in ours:
            os.kill(pid, signal.SIGSTOP)  # so that they die together
        for pid in ours:
            os.kill(pid, signal.SIGKILL)
        worker.process.wait()
        assert model in process_tree.find_run(old_run)
        worker.start()
        worker.wait_ready()
        assert process_tree.find_run(old_run) == []
        assert not directory.exists()


def test_a_pause_of_the_whole_worker_costs_no_stream(tmp_path: Path) -> None:
    """The machine was frozen for longer than anybody may be mute."""

    async def scene(worker: Worker, auth: dict[str, Any]) -> Any:
        async with Load(worker.url, auth) as load:
            task = load.start("/v1/completions", STREAM)
            await until(lambda: stats(worker)["served_tokens"] > 5, "the stream to begin")
            pids = process_tree.find_run(worker.run_id)
            everyone = [worker.process.pid, *pids]
            for pid in everyone:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(DEAD_AFTER_S + 1.0)  # the pause itself
            for pid in everyone:
                os.kill(pid, signal.SIGCONT)
            return await task

    with paced(tmp_path) as worker:
        outcome = asyncio.run(scene(worker, worker.auth()))
        assert outcome.kind == "ok" and outcome.body.endswith(b"data: [DONE]\n\n")
        assert {member["restarts"] for member in worker.members().values()} == {0}


def test_jobs_wait_while_the_adapter_is_restarted_by_command(tmp_path: Path) -> None:
    """It finishes what runs; who comes meanwhile is not told that the worker stops."""

    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(5):
                load.start("/generate", UNARY)
            await until(lambda: stats(worker)["running"] == 5, "the model to run them")
            old = await asyncio.to_thread(worker.pid, "backend_adapter")
            await asyncio.to_thread(worker.command, "restart", "backend_adapter")
            for _ in range(5):
                load.start("/generate", UNARY)
            outcomes = await load.outcomes()
            await asyncio.to_thread(worker.wait_replaced, "backend_adapter", old)
            return outcomes

    with paced(tmp_path) as worker:
        assert asyncio.run(scene(worker, worker.auth())) == {"ok": 10}


def test_a_model_server_that_cannot_start_is_reported_and_answered_for(tmp_path: Path) -> None:
    toml = (
        '[model]\ncommand = ["/bin/sh", "-c", "exit 3"]\nurl = "http://127.0.0.1:1"\n'
        "[restart]\nbudget = 0\n"
    )
    worker = Worker(tmp_path, toml=toml).start()
    try:
        wait_until(
            lambda: (
                (m := worker.members())
                and (m["model"]["state"], m["engine"]["state"]) == ("failed", "ready")
            ),
            60.0,
            "the model server to be given up",
        )
        worker.facts()
        wait_until(
            lambda: reports(worker) and "exit 3; gave up" in reports(worker)[-1]["error_msg"],
            what="the engine to be told",
        )
        assert worker.process.poll() is None
        body = {"auth_data": {}, "payload": {}}
        assert post_json(f"{worker.url}/generate", body)["error"]["kind"] == "missing_parameter"
    finally:
        end(worker)
