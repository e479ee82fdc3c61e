"""Pauses, restarts by command and losses that are no failure: life goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor import process_tree
from supervisor.link import DEAD_AFTER_S
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, running

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
