"""Our own processes are killed, frozen and blocked while requests run."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor import script
from supervisor.exit_codes import ExitCode
from tests.chaos.deaths import (
    BLOCK,
    SABOTAGE,
    SCRIPT,
    Mix,
    ends_with_error,
    error_of,
    kinds,
    only_restarted,
    paced,
    received,
    rows,
    settled,
    stats,
    unary,
    until,
)
from tests.chaos.table import row
from tests.compat.bench import Bench, kind_of, on_the_bench
from tests.kit import demo_programs
from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, post_json, running

#: What runs a worker.py may be mute for 30 s, because it holds Python's lock; not because it is
#: stopped.
FAR_LESS_THAN_A_SCRIPTS_S = 20.0
Outcomes = tuple[list[Outcome], list[Outcome], list[Outcome]]


async def kill_amid(worker: Worker, auth: dict[str, Any], name: str) -> tuple[Mix, Outcomes]:
    """SIGKILL while requests of every kind are under way; these, and how they ended."""
    async with Load(worker.url, auth) as load:
        mix = Mix(load)
        await mix.under_way(worker)
        old = await asyncio.to_thread(worker.kill, name)
        outcomes = await mix.all()
        await asyncio.to_thread(worker.wait_replaced, name, old)
        return mix, outcomes


@row(
    1,
    "the backend_adapter is killed (`kill -9`)",
    seen="answers that had not begun come, a little later; a stream that had begun ends with an "
    "`adapter_down` event and a cut connection",
    does="starts it again; ingress submits every job anew whose answer had not begun, and the "
    "model server is asked again for those that it had been asked for; the load is true again",
)
def test_row_01_kill_of_the_adapter(tmp_path: Path) -> None:
    with paced(tmp_path) as worker:
        before = worker.members()
        mix, (unary, streams, serial) = asyncio.run(
            kill_amid(worker, worker.auth(), "backend_adapter")
        )
        assert kinds(unary) == {"ok": Mix.UNARY} and kinds(serial) == {"ok": Mix.SERIAL}
        assert all(ends_with_error(outcome, "adapter_down") for outcome in streams)
        only_restarted(worker, "backend_adapter", before)
        settled(worker, Mix.ALL, mix.unbegun)
        ended = rows(worker)
        assert sorted(ended) == list(range(1, Mix.ALL + 1))
        assert sorted(ended.values()).count("Success") == Mix.UNARY + Mix.SERIAL
        sent = received(worker)
        assert all(sent[f"unary-{n}"] == 2 for n in range(Mix.UNARY)), sent
        assert all(sent[f"stream-{n}"] == 1 for n in range(Mix.STREAMS)), sent
        # who waited was sent once; one or two had been sent when it died
        assert sum(sent[f"serial-{n}"] for n in range(Mix.SERIAL)) == Mix.SERIAL + 1, sent
        wait_until(lambda: stats(worker)["running"] == 0, what="the model's slots to be free")


@row(
    1,
    "the reporter is killed (`kill -9`)",
    seen="nothing: every answer and every stream goes on",
    does="starts it again; the engine hears of every request once, and of its workload to the unit,"
    " but for what it took in the reporter's last moment: that it may hear twice",
)
def test_row_01_kill_of_the_reporter(tmp_path: Path) -> None:
    with paced(tmp_path) as worker:
        before = worker.members()
        mix, (unary, streams, serial) = asyncio.run(kill_amid(worker, worker.auth(), "reporter"))
        assert kinds([*unary, *streams, *serial]) == {"ok": Mix.ALL}
        assert all(outcome.body.endswith(b"data: [DONE]\n\n") for outcome in streams)
        only_restarted(worker, "reporter", before)
        settled(worker, Mix.ALL, mix.unbegun + mix.begun)
        assert rows(worker) == dict.fromkeys(range(1, Mix.ALL + 1), "Success")
        assert set(received(worker).values()) == {1}


@row(
    1,
    "one of two ingress processes is killed (`kill -9`)",
    seen="its clients' connections break, and new ones are accepted at once by the other; the "
    "requests of the other's clients go on",
    does="starts it again; takes its requests back from the model server, and tells the engine "
    "that they were cancelled",
)
def test_row_01_kill_of_an_ingress(tmp_path: Path) -> None:
    def held_by_first(worker: Worker) -> int:
        """How many requests it has, once the heartbeats tell of all."""
        members = worker.members()
        held = [members[f"ingress-{n}"]["gauges"].get("in_flight", 0) for n in (0, 1)]
        return held[0] if sum(held) == Mix.ALL else 0

    async def scene(worker: Worker, auth: dict[str, Any]) -> tuple[int, float, list[Outcome]]:
        async with Load(worker.url, auth) as load:
            mix = Mix(load, times=2)
            await mix.under_way(worker)
            doomed = await until(lambda: held_by_first(worker), "the heartbeats to tell")
            old = await asyncio.to_thread(worker.kill, "ingress-0")
            groups = await mix.all()
            await asyncio.to_thread(worker.wait_replaced, "ingress-0", old)
            assert (await load.start("/generate", unary("later", 10))).kind == "ok"
            tokens = (mix.unary_tokens, mix.stream_tokens, mix.serial_tokens)
            served = sum(n * kinds(g).get("ok", 0) for n, g in zip(tokens, groups, strict=True))
            return doomed, 10.0 + served, [outcome for group in groups for outcome in group]

    with paced(tmp_path, settings=("worker.processes=2",)) as worker:
        before = worker.members()
        doomed, served, outcomes = asyncio.run(scene(worker, worker.auth()))
        broken = kinds(outcomes)["broken"]
        assert kinds(outcomes) == {"broken": broken, "ok": Mix.ALL - broken}
        assert broken <= doomed < Mix.ALL  # what the other had is answered
        assert not any(b"error" in outcome.body for outcome in outcomes)
        only_restarted(worker, "ingress-0", before)
        settled(worker, Mix.ALL + 1, served)
        ended = rows(worker)
        assert sorted(ended) == list(range(1, Mix.ALL + 2))
        assert sorted(ended.values()).count("Cancelled") == broken
        assert set(received(worker).values()) == {1}  # and of who waited, some never came
        wait_until(lambda: stats(worker)["running"] == 0, what="the model's slots to be free")


async def freeze_amid(worker: Worker, auth: dict[str, Any], names: tuple[str, ...]) -> str:
    """SIGSTOP while a request runs; how that ended."""
    async with Load(worker.url, auth) as load:
        asked = load.start("/generate", unary(names[0], 25))
        await until(lambda: stats(worker)["running"] == 1, "the model to run it")
        old = {name: await asyncio.to_thread(worker.kill, name, signal.SIGSTOP) for name in names}
        for name, pid in old.items():
            if name != "hooks":  # the kernel itself acts on SIGTERM there, while it still stops
                os.kill(pid, signal.SIGTERM)  # pending: it does not come to act on it
        for name, pid in old.items():
            await asyncio.to_thread(worker.wait_replaced, name, pid)
        return (await asked).kind


def mute_s(member: dict[str, Any]) -> float:
    """For how long it had sent no heartbeat when it was killed."""
    said = re.fullmatch(r"no heartbeat for ([0-9.]+) s", member["last_exit"])
    assert said, member
    return float(said[1])


@row(
    3,
    "one of our processes is frozen (`kill -STOP`), be it the one that runs a worker.py",
    seen="a pause of some seconds: requests end as after a kill of that process; `status` says "
    "`no heartbeat for 3.5 s` and counts a restart",
    does="misses three heartbeats, kills it with SIGKILL (a stopped process does not act on "
    "SIGTERM), and starts it again",
)
def test_row_03_each_of_ours_is_frozen(tmp_path: Path) -> None:
    expected = {("reporter", "ingress-0"): "broken", ("backend_adapter", "hooks"): "ok"}
    with running(tmp_path, script=SCRIPT) as worker:
        auth = worker.auth()
        for names, kind in expected.items():
            before = worker.members()
            assert asyncio.run(freeze_amid(worker, auth, names)) == kind, names
            after = worker.members()
            assert all(mute_s(after[name]) < FAR_LESS_THAN_A_SCRIPTS_S for name in names)
            assert {n for n in after if after[n]["pid"] != before[n]["pid"]} == set(names)
            wait_until(lambda: worker.status()["ready"], what="ready again")


@row(
    4,
    "the event loop of one of our processes is blocked, though its process lives",
    seen="as when it is frozen",
    does="the loop itself sends the heartbeats, never a thread: three are missed, it is killed "
    "and started again",
)
def test_row_04_the_event_loop_is_blocked(tmp_path: Path) -> None:
    names = ("reporter", "backend_adapter", "ingress-0")
    with paced(tmp_path, environ=SABOTAGE) as worker:
        before = worker.members()
        for name in names:
            worker.kill(name, BLOCK)
        for name in names:
            worker.wait_replaced(name, before[name]["pid"])
        after = worker.members()
        assert all(mute_s(after[name]) < FAR_LESS_THAN_A_SCRIPTS_S for name in names)
        assert {n for n in after if after[n]["pid"] != before[n]["pid"]} == set(names)
        wait_until(lambda: worker.status()["ready"], what="ready again")
        body = {"auth_data": worker.auth(), "payload": unary("later", 5)}
        assert "generated_text" in post_json(f"{worker.url}/generate", body)


#: A worker.py whose function can hold Python's lock, as a library's C code may.
HOLDER = """
import ctypes

from vastai import HandlerConfig, Worker, WorkerConfig


def parse(payload):
    if payload.get("hold"):
        ctypes.PyDLL(None).sleep(1000)
    return payload


Worker(
    WorkerConfig(
        model_server_url="http://127.0.0.1",
        model_server_port=PORT,
        model_healthcheck_url="/health",
        handlers=[
            HandlerConfig("/parsed", request_parser=parse, allow_parallel_requests=True),
            HandlerConfig("/plain", allow_parallel_requests=True),
        ],
    )
).run()
"""


@contextmanager
def asked_without_a_pause(bench: Bench, route: str) -> Iterator[list[int]]:
    """The statuses of requests, one after the other, in a thread until it is left."""
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses.append(bench.ask(route, {"n": 1})[0])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join()


@row(
    4,
    "a library that a worker.py uses holds Python's lock for ever, and the event loop with it",
    seen="a request that needs the worker.py gets a 504 `hook_timeout` meanwhile, the others are "
    "answered; `status` says `no heartbeat for 30.5 s`",
    does="is patient for 30 s with the process of a worker.py, unless it is stopped "
    "(`kill -STOP`): then it holds nothing; kills it and starts it again, and no other",
)
def test_row_04_a_worker_py_that_holds_the_lock(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, HOLDER, "--set", "hooks.timeout_s=2") as bench:
        bench.until_ready()
        before = {member["name"]: member for member in bench.status()["members"]}

        def replaced() -> dict[str, Any]:
            member = bench.member("hooks")
            again = member["pid"] not in (0, before["hooks"]["pid"])
            return member if again and member["state"] == "ready" else {}

        with asked_without_a_pause(bench, "/plain") as statuses:
            held = bench.ask("/parsed", {"hold": True})
            assert kind_of(held) == (504, "hook_timeout"), held
            answered = len(statuses)
            assert bench.member("hooks")["pid"] == before["hooks"]["pid"]
            wait_until(lambda: "no heartbeat for" in bench.output, 60.0, "its end")
            assert len(statuses) > answered + 50, "others waited"
            hooks = wait_until(replaced, 60.0, "another one")
            assert bench.ask("/parsed", {})[0] == 200
        assert set(statuses) == {200}
        assert script.HELD_S <= mute_s(hooks) < script.HELD_S + 15.0
        after = {member["name"]: member for member in bench.status()["members"]}
        assert {n for n in after if after[n]["pid"] != before[n]["pid"]} == {"hooks"}
        assert {n: m["restarts"] for n, m in after.items() if m["restarts"]} == {"hooks": 1}


@row(
    6,
    "one of our own processes dies again and again",
    seen="exit code 69, and in the last lines which process it was; the last report to the engine "
    "names it too; a request under way gets a typed 503",
    does="starts it again until its budget is spent (10 times in 10 minutes), then ends the run in "
    "order: a worker that lacks one of its parts is worth nothing",
)
def test_row_06_one_of_ours_dies_again_and_again(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> Outcome:
        async with Load(worker.url, auth) as load:
            asked = load.start("/generate", unary("lost", 2000))
            for _ in range(2):
                await until(lambda: stats(worker)["running"] == 1, "the model to run it")
                old = await asyncio.to_thread(worker.kill, "backend_adapter")
                await asyncio.to_thread(worker.wait_replaced, "backend_adapter", old)
            await asyncio.to_thread(worker.kill, "backend_adapter")
            return await asked

    with demo_programs.running("supervisor.demo.engine", tmp_path / "engine.log") as engine:
        engine.listening()
        environ = {
            "REPORT_ADDR": f"http://127.0.0.1:{engine.port}", "MASTER_TOKEN": "t0k3n",
            "CONTAINER_ID": "7",
        }  # fmt: skip
        with paced(tmp_path, environ=environ, settings=("restart.budget=2",)) as worker:
            outcome = asyncio.run(scene(worker, worker.auth()))
            assert outcome.status == 503 and error_of(outcome)["kind"] == "adapter_down"
            assert "failed for good" in error_of(outcome)["message"]  # not after drain_s, 30 s
            assert worker.process.wait(60) == ExitCode.CHILD_FAILED, worker.printed
            assert "backend_adapter: killed by signal 9" in worker.printed
            assert "gave up after 2 restarts within 600 s" in worker.printed
            assert worker.leftovers() == []
        told = [entry.get("report", entry) for entry in engine.get("/demo/record")["status"]]
        assert "backend_adapter" in told[-1]["error_msg"], told[-1]
