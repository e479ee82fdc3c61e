"""The model server dies, hangs, crashes in a loop, loads for long, or is killed for memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from supervisor.exit_codes import ExitCode
from tests.chaos.deaths import (
    BLOAT,
    SABOTAGE,
    Mix,
    ends_with_error,
    error_of,
    fault,
    kinds,
    only_restarted,
    paced,
    received,
    reports,
    settled,
    stats,
    stream,
    unary,
    until,
)
from tests.chaos.table import row
from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, post_json

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
    seen="502 `model_failed`: the model server closed the connection; the request was sent 2 "
    "times, and is not sent again",
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


#: It is judged within seconds.
IMPATIENT = (
    "model.probe_every_s=0.3", "model.probe_timeout_s=1", "model.stall_timeout_s=1.5",
)  # fmt: skip


@row(
    5,
    "the model server takes connections and never answers, its health path included",
    seen="requests that it had not begun are answered after its restart, with the defaults about a "
    "minute later; `status` and the engine are told that it is stalled",
    does="calls it unhealthy after `model.probe_failures` probes and holds what waits; restarts it "
    "when nothing moved for `model.stall_timeout_s`. A generation that makes progress is left "
    "alone for as long as it does, whatever the probes say",
)
def test_row_05_it_never_answers(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> None:
        async with Load(worker.url, auth) as load:
            await asyncio.to_thread(fault, worker, "stop_after_health")
            slow = load.start("/v1/completions", stream("slow", 75))  # 3 s
            old = await asyncio.to_thread(worker.pid, "model")
            await until(lambda: not worker.status()["model"]["healthy"], "bad probes to count")
            assert (await slow).body.endswith(b"data: [DONE]\n\n")
            assert await asyncio.to_thread(worker.pid, "model") == old
            await asyncio.to_thread(worker.wait_replaced, "model", old)

            await asyncio.to_thread(fault, worker, "hang")
            unanswered = load.start("/generate", unary("unanswered", 10))
            old = await asyncio.to_thread(worker.pid, "model")
            await asyncio.to_thread(worker.wait_replaced, "model", old)
            assert (await unanswered).kind == "ok"

    with paced(tmp_path, settings=IMPATIENT) as worker:
        asyncio.run(scene(worker, worker.auth()))
        assert "is stalled" in worker.members()["model"]["last_exit"]
        assert received(worker)["slow"] == 1
        wait_until(
            lambda: any("is stalled" in error for error in errors_told(worker)),
            what="the engine to hear it",
        )
        settled(worker, 2, 85.0)


@row(
    5,
    "the model server is silent for long before it begins to answer (a long prefill)",
    seen="nothing, as long as its health path answers; 504 `model_timeout` where "
    "`model.first_byte_timeout_s` is set and over",
    does="lets neither `model.idle_timeout_s` nor `model.stall_timeout_s` count against it; where "
    "its own allowance is over, the model server sees the connection close",
)
def test_row_05_a_long_silent_prefill(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> list[Outcome]:
        async with Load(worker.url, auth) as load:
            await asyncio.to_thread(fault, worker, "slow", delay_s=2.0)
            first = await load.start("/v1/completions", stream("patient", 10))
            await asyncio.to_thread(fault, worker, "slow", delay_s=100.0)
            return [first, await load.start("/v1/completions", stream("too-long", 10))]

    settings = (
        "model.idle_timeout_s=1", "model.stall_timeout_s=1", "model.first_byte_timeout_s=4",
        "model.probe_every_s=0.3",
    )  # fmt: skip
    with paced(tmp_path, settings=settings) as worker:
        before = worker.members()
        patient, too_long = asyncio.run(scene(worker, worker.auth()))
        assert patient.kind == "ok" and patient.body.endswith(b"data: [DONE]\n\n")
        assert (too_long.status, too_long.kind) == (504, "model_timeout")
        wait_until(lambda: stats(worker)["cancelled"] == 1, what="the model to see it close")
        assert {n: m["pid"] for n, m in worker.members().items()} == {
            n: m["pid"] for n, m in before.items()
        }


@row(
    6,
    "the model server crashes again and again, each time just after it became ready",
    seen="restarts that come ever later; then 503 `model_down` at once; `status` says how it "
    "ended and that it was given up, and so does the report to the engine",
    does="waits twice as long before each restart; one that was ready for `restart.stable_s` "
    "(60 s) counts as well again. More than `restart.budget` restarts within `restart.window_s`: "
    "gives up, and goes on to answer and to report",
)
def test_row_06_it_crashes_just_after_it_was_ready(tmp_path: Path) -> None:
    def gap_s(worker: Worker) -> float:
        """From a kill to the next process, which becomes ready."""
        old, began = worker.kill("model"), time.monotonic()
        wait_until(lambda: worker.pid("model") not in (0, old), 60.0, "another process")
        took_s = time.monotonic() - began
        worker.wait_replaced("model", old)
        return took_s

    first_s, stable_s = 1.5, 1.0
    settings = (
        f"restart.first_delay_s={first_s}", f"restart.stable_s={stable_s}", "restart.budget=3",
        "auth.mode=none",
    )  # fmt: skip
    with paced(tmp_path, settings=settings) as worker:
        gap_s(worker)
        assert gap_s(worker) > first_s * 0.8
        calm_at = time.monotonic() + stable_s + 0.5
        wait_until(lambda: time.monotonic() > calm_at, what="time to pass: it is stable")
        assert gap_s(worker) < 2 * first_s * 0.8  # it would have waited at least that long

        worker.kill("model")
        wait_until(lambda: worker.members()["model"]["state"] == "failed", what="giving up")
        said = "gave up after 3 restarts within 600 s"
        assert said in worker.members()["model"]["reason"]
        refused = post_json(f"{worker.url}/generate", {"payload": unary("late", 10)})["error"]
        assert refused["kind"] == "model_down" and said in refused["message"]
        wait_until(lambda: said in reports(worker)[-1]["error_msg"], what="the engine to be told")
        # the adapter repeats its last verdict with each heartbeat, whatever became of the process
        beats = wait_until(lambda: worker.members()["backend_adapter"]["uptime_s"])
        while worker.members()["backend_adapter"]["uptime_s"] < beats + 2.5:
            assert not worker.status()["ready"] and not worker.status()["model"]["ready"]
        assert worker.process.poll() is None

        worker.command("restart", "model")
        wait_until(lambda: worker.status()["ready"], 60.0, "the word of a person to help")


@row(
    6,
    "the model server crashes at each start",
    seen="503 `model_down` once it is given up; the worker stays, and its port too",
    does="the same; that it never became ready changes nothing",
)
def test_row_06_it_crashes_at_each_start(tmp_path: Path) -> None:
    toml = '[model]\ncommand = ["/bin/sh", "-c", "exit 3"]\nurl = "http://127.0.0.1:1"\n'
    settings = ("restart.budget=2", "restart.first_delay_s=0.1", "auth.mode=none")
    worker = Worker(tmp_path, toml=toml, settings=settings).start()
    try:
        wait_until(
            lambda: (
                (m := worker.members())
                and (m["model"]["state"], m["engine"]["state"], m["ingress-0"]["state"])
                == ("failed", "ready", "ready")
            ),
            60.0,
            "the model server to be given up",
        )
        worker.facts()
        assert worker.members()["model"]["restarts"] == 2
        wait_until(
            lambda: reports(worker) and "exit 3; gave up" in reports(worker)[-1]["error_msg"],
            what="the engine to be told",
        )
        for _ in range(2):
            told = post_json(f"{worker.url}/generate", {"payload": unary("later", 5)})
            assert told["error"]["kind"] == "model_down" and "exit 3" in told["error"]["message"]
        assert worker.process.poll() is None
        assert worker.stop() == ExitCode.CLEAN
    finally:
        end(worker)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A cgroup of its own below ours, with a limit; the kernel kills within it."""
    group = Path("/proc/self/cgroup").read_text().splitlines()
    controllers = {line.split(":")[1]: line.split(":")[2] for line in group}
    if "memory" in controllers:
        parent, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        parent /= controllers["memory"].lstrip("/")
    else:
        parent, limit = Path("/sys/fs/cgroup"), "memory.max"
        parent /= controllers.get("", "/").lstrip("/")
    made = parent / f"lighterman-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        try:
            (made / limit).write_text(str(limit_bytes))
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")
        yield made
    finally:
        wait_until(lambda: not (made / "cgroup.procs").read_text(), what="the group to be empty")
        made.rmdir()


@row(
    9,
    "the kernel kills the model server for memory",
    seen="`killed by the kernel for memory (out of memory)` in `status`, in the log and in the "
    "report to the engine; requests end as after any death of the model server",
    does="compares the kernel's own count of such kills (`oom_kill` of the cgroup) before and "
    "after; then starts it again",
)
def test_row_09_the_kernel_kills_the_model_server_for_memory(tmp_path: Path) -> None:
    with memory_group(640 * 2**20) as group:
        enter = ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))
        with paced(tmp_path, before=enter, environ=SABOTAGE) as worker:
            old = worker.kill("model", BLOAT)  # takes memory until it is stopped
            worker.wait_replaced("model", old)
            said = "killed by the kernel for memory (out of memory)"
            assert worker.members()["model"]["last_exit"] == said
            wait_until(
                lambda: any(said in error for error in errors_told(worker)),
                what="the engine to hear it",
            )
            assert said in worker.printed
            assert all(m["restarts"] == (n == "model") for n, m in worker.members().items())
