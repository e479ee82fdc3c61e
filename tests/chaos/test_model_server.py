"""The model server dies, hangs, crashes in a loop, loads for long, or is killed for memory."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.chaos.deaths import (
    Mix,
    ends_with_error,
    error_of,
    kinds,
    only_restarted,
    paced,
    received,
    reports,
    settled,
    stats,
    unary,
    until,
)
from tests.chaos.table import row
from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until
from tests.kit.worker import Worker

#: It loads for longer than ``/hasty`` may wait.
SLOW_START = ("--tokens-per-second", "25", "--load-seconds", "2.5")


def errors_told(worker: Worker) -> list[str]:
    """Each text that the engine was told as the worker's error, "" included, when it changed."""
    told = [report["error_msg"] for report in reports(worker)]
    return [new for old, new in pairwise(["", *told]) if new != old]


@row(
    2,
    "the model server is killed (`kill -9`)",
    seen="the port stays open; requests that wait, or were sent and not begun, are answered after "
    "the restart; a stream that had begun ends with a `model_failed` event and a cut connection; "
    "503 `not_ready` with Retry-After where the wait is longer than a route allows; 502 "
    "`model_failed` on a route with `redeliver = false`",
    does="starts it again, and sends what it had not begun to answer once more; tells the engine "
    "the error, and then that the worker is ready",
)
def test_row_02_kill_of_the_model_server(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> list[list[Outcome]]:
        async with Load(worker.url, auth) as load:
            mix = Mix(load)
            once = load.start("/once", unary("once", 50))
            await until(lambda: received(worker)["once"], "the model to have it")
            await mix.under_way(worker)
            old = await asyncio.to_thread(worker.kill, "model")
            await until(lambda: not worker.status()["model"]["ready"], "the death to be seen")
            hasty = load.start("/hasty", unary("hasty", 10))
            late = load.start("/generate", unary("late", 10))
            assert (await hasty).kind == "not_ready" and not late.done()
            groups = [*await mix.all(), [await once], [await hasty], [await late]]
            await asyncio.to_thread(worker.wait_replaced, "model", old)
            return groups

    with paced(tmp_path, model_flags=SLOW_START) as worker:
        before = worker.members()
        groups = asyncio.run(scene(worker, worker.auth()))
        answered, streams, serial, (once,), (hasty,), (late,) = groups
        assert kinds(answered) == {"ok": Mix.UNARY} and kinds(serial) == {"ok": Mix.SERIAL}
        assert all(ends_with_error(outcome, "model_failed") for outcome in streams)
        assert (once.status, once.kind) == (502, "model_failed")
        assert "may not run twice" in error_of(once)["message"]
        assert hasty.status == 503 and error_of(hasty)["retry_after_s"] >= 1
        assert "the model server is not ready" in error_of(hasty)["message"]
        assert late.kind == "ok"
        only_restarted(worker, "model", before)
        sent = received(worker)
        assert all(sent[f"unary-{n}"] == 2 for n in range(Mix.UNARY)), sent
        assert sent["once"] == sent["late"] == 1 and sent["hasty"] == 0
        assert all(sent[f"stream-{n}"] == 1 for n in range(Mix.STREAMS)), sent
        assert sum(sent[f"serial-{n}"] for n in range(Mix.SERIAL)) == Mix.SERIAL + 1, sent
        served = Mix.UNARY * 50 + Mix.SERIAL * 25 + 10
        settled(worker, Mix.ALL + 3, served)
        error, none = wait_until(lambda: (e := errors_told(worker))[1:] and e, what="good news")
        assert "signal 9" in error and none == ""
        assert worker.status()["load"]["reported_ready"]


@row(
    2,
    "the model server is killed again before it could answer what it was sent twice",
    seen="502 `model_failed`: the model server closed the connection; the request was sent 2 times, "
    "and is not sent again",
    does="sends a request `queue.max_attempts` times (2) and no more: it may be what kills it",
)
def test_row_02_a_request_is_not_sent_a_third_time(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> Outcome:
        async with Load(worker.url, auth) as load:
            asked = load.start("/generate", unary("deadly", 500))
            for attempt in (1, 2):
                await until(
                    lambda attempt=attempt: received(worker)["deadly"] == attempt, "an attempt"
                )
                old = await asyncio.to_thread(worker.kill, "model")
                await asyncio.to_thread(worker.wait_replaced, "model", old)
            return await asked

    with paced(tmp_path) as worker:
        outcome = asyncio.run(scene(worker, worker.auth()))
        assert (outcome.status, outcome.kind) == (502, "model_failed")
        said = "the model server closed the connection; the request was sent 2 times"
        assert error_of(outcome)["message"].startswith(said), outcome.body
        assert received(worker)["deadly"] == 2
        assert stats(worker)["running"] == 0
        settled(worker, 1, 0.0)
