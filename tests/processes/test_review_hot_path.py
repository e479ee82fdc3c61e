"""Whole workers under what crosses on the way: deadlines, departures, deaths, small credits."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until
from tests.kit.worker import ROUTES, Worker, get_json, post_json, running

PACE = ("--tokens-per-second", "200", "--load-seconds", "0.2")
LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 5000, "stream": True}
SHORT: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 20}}
STREAM: dict[str, Any] = {"prompt": "x", "max_tokens": 40, "stream": True}


def stats(worker: Worker) -> dict[str, Any]:
    return dict(get_json(f"http://127.0.0.1:{worker.model_port}/demo/stats"))


def fault(worker: Worker, **fields: Any) -> None:
    post_json(f"http://127.0.0.1:{worker.model_port}/demo/fault", fields)


def at_rest(worker: Worker) -> bool:
    """Nobody holds anything: no job, no slot, no load, and the model server runs nothing."""
    members = worker.members()
    adapter, door = members["backend_adapter"]["gauges"], members["ingress-0"]["gauges"]
    report = [entry.get("report", entry) for entry in worker.record()["status"]][-1]
    return (
        (adapter["waiting"], adapter["running"], adapter["held_bytes"]) == (0, 0, 0)
        and (door["in_flight"], door["malformed"], adapter["malformed"]) == (0, 0, 0)
        and (report["cur_load"], report["num_requests_working"]) == (0, 0)
        and stats(worker)["running"] == 0
    )


def test_a_routes_timeout_is_a_typed_504_and_frees_the_model_server(tmp_path: Path) -> None:
    routes = ROUTES.replace("[[route]]", "[[route]]\ntimeout_s = 1.0")

    async def scene(worker: Worker, auth: dict[str, Any]) -> list[Outcome]:
        async with Load(worker.url, auth) as load:
            silent = load.start(
                "/generate", {"inputs": "x", "parameters": {"max_new_tokens": 5000}}
            )
            begun = load.start("/v1/completions", LONG)
            return [await silent, await begun]

    with running(tmp_path, model_flags=PACE, routes=routes) as worker:
        silent, begun = asyncio.run(scene(worker, worker.auth()))
        assert (silent.kind, silent.status) == ("expired", 504)
        assert (begun.kind, begun.status) == ("broken", 200)
        assert b'"kind":"expired"' in begun.body.rpartition(b"data: ")[2]
        wait_until(lambda: at_rest(worker), what="everything to be let go of")


def test_what_the_model_server_answers_wrongly_is_told(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any], route: str, payload: Any) -> Outcome:
        async with Load(worker.url, auth) as load:
            return await load.start(route, payload)

    with running(tmp_path, model_flags=PACE) as worker:
        auth = worker.auth()
        for variant in ("malformed", "large_headers", "truncated"):
            fault(worker, kind="bad_response", variant=variant)
            outcome = asyncio.run(scene(worker, auth, "/generate", SHORT))
            assert (outcome.kind, outcome.status) == ("model_failed", 502), (variant, outcome)
        fault(worker, kind="close_mid_stream", after=3)
        outcome = asyncio.run(scene(worker, auth, "/v1/completions", STREAM))
        assert outcome.kind == "broken"
        assert b'"kind":"model_failed"' in outcome.body.rpartition(b"data: ")[2]
        wait_until(lambda: at_rest(worker), what="everything to be let go of")


def test_deaths_and_departures_cross_and_nothing_is_left(tmp_path: Path) -> None:
    """Every request has one outcome, whoever dies, and with the smallest credit there is."""
    dice = random.Random(7)

    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            gone: list[asyncio.Task[Outcome]] = []
            for name in ("backend_adapter", "model", "backend_adapter", "reporter", "model"):
                for _ in range(60):
                    load.start(*dice.choice([("/generate", SHORT), ("/v1/completions", STREAM)]))
                    leaver = load.start("/v1/completions", LONG)
                    load.tasks.remove(leaver)
                    gone.append(leaver)
                    await asyncio.sleep(dice.random() * 0.01)
                for leaver in gone:
                    leaver.cancel()
                old = await asyncio.to_thread(worker.kill, name, signal.SIGKILL)
                await asyncio.to_thread(worker.wait_replaced, name, old)
            outcomes = await load.outcomes()
            await asyncio.gather(*gone, return_exceptions=True)
            return outcomes

    settings = ("limits.stream_credit_bytes=4096", "restart.first_delay_s=0.05")
    with running(tmp_path, model_flags=PACE, settings=settings) as worker:
        outcomes = asyncio.run(scene(worker, worker.auth()))
        assert outcomes["ok"] > 0 and not set(outcomes) - {"ok", "broken", "model_failed"}, outcomes
        wait_until(lambda: at_rest(worker), what="everything to be let go of")
        print(outcomes)


def test_a_quiet_morning_is_no_reason_to_refuse_a_burst(tmp_path: Path) -> None:
    """Without a benchmark nobody knows what the model server can do, only what it did."""

    async def scene(worker: Worker, auth: dict[str, Any]) -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(12):
                await load.start("/generate", SHORT)
            await asyncio.to_thread(
                wait_until, lambda: gauge(worker, "max_perf") > 0, what="a first figure"
            )
            for _ in range(60):
                load.start("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 400}})
            return await load.outcomes()

    with running(tmp_path, model_flags=PACE) as worker:
        assert asyncio.run(scene(worker, worker.auth())) == {"ok": 72}


def gauge(worker: Worker, name: str) -> float:
    return float(worker.members()["backend_adapter"]["gauges"].get(name, 0))
