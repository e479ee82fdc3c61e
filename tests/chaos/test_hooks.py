"""What user code does wrong costs its own requests, and nobody else's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.table import row
from tests.compat.bench import Bench, kind_of, on_the_bench
from tests.kit.removal import remove
from tests.kit.wait import wait_until

WORKER = """
import asyncio, os, sys, time
from aiohttp import web
from vastai import HandlerConfig, Worker, WorkerConfig

class Odd(BaseException):
    pass

def parse(payload):
    match payload.get("do"):
        case "raise": raise RuntimeError("no good")
        case "odd": raise Odd("neither")
        case "exit": sys.exit(3)
        case "die": os._exit(3)
        case "hang": time.sleep(1000)
        case "nonsense": return [payload, object()]
        case "nothing": return None
    return payload

def workload(payload):
    match payload.get("count"):
        case "raise": raise RuntimeError("no good")
        case "text": return "much"
        case "nan": return float("nan")
        case "negative": return -5
        case "hang": time.sleep(1000)
    return 1.0

async def form(request, response):
    what = request.headers.get("x-do", "")
    await response.read()
    match what:
        case "raise": raise RuntimeError("no good")
        case "exit": sys.exit(3)
        case "die": os._exit(3)
        case "hang": await asyncio.sleep(1000)
        case "block": time.sleep(2)
        case "nonsense": return {"a": 1}
        case "nothing": return None
        case "cancel": raise asyncio.CancelledError
    return web.json_response({"formed": True})

Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[
        HandlerConfig("/parsed", request_parser=parse, allow_parallel_requests=True),
        HandlerConfig("/counted", workload_calculator=workload, allow_parallel_requests=True),
        HandlerConfig("/formed", response_generator=form, allow_parallel_requests=True),
        HandlerConfig("/plain", allow_parallel_requests=True),
    ])).run()
"""


ROUTES = ("/parsed", "/counted", "/formed", "/plain")


class Others:
    """Requests of others without a pause, on routes with and without hooks; all must be good."""

    def __init__(self, bench: Bench, routes: tuple[str, ...]) -> None:
        self._bench = bench
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(r,)) for r in routes]
        self.answered = dict.fromkeys(routes, 0)
        self.longest_s = dict.fromkeys(routes, 0.0)  #: that one of them took
        self.bad: list[Any] = []

    def _ask(self, route: str) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            status, _, body = self._bench.ask(route, {"n": 1})
            self.longest_s[route] = max(self.longest_s[route], time.monotonic() - began)
            if status == 200:
                self.answered[route] += 1
            else:
                self.bad.append((route, status, body))

    def go_on(self) -> None:
        """Each route answers some more from now on, and none ever answered otherwise."""
        before = dict(self.answered)
        wait_until(
            lambda: self.bad or all(self.answered[r] > before[r] + 2 for r in before),
            60.0,
            f"the others' answers: {before}, {self.answered}",
        )
        assert self.bad == []

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()


@contextmanager
def others(bench: Bench, routes: tuple[str, ...] = ROUTES) -> Iterator[Others]:
    flow = Others(bench, routes)
    flow.begin()
    try:
        yield flow
    finally:
        flow.end()


@row(
    26,
    "a function of the worker.py raises, calls sys.exit, or returns what nobody can send",
    seen="that request: 500 hook_failed with what went wrong (a workload that cannot be counted is"
    " the default one, and the log says so); others: nothing",
    does="catches whatever it raises, checks what it returns, and goes on with the same process",
)
def test_row_26_hooks_that_raise_exit_or_return_nonsense(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, WORKER, "--set", "hooks.timeout_s=5") as bench:
        bench.until_ready()
        with others(bench) as flow:
            for what in ("raise", "odd", "exit", "nonsense"):
                answer = bench.ask("/parsed", {"do": what})
                assert kind_of(answer) == (500, "hook_failed"), (what, answer)
            for what in ("raise", "text", "nan", "negative"):
                assert bench.ask("/counted", {"count": what})[0] == 200, what
            wait_until(lambda: bench.output.count("it counts as 100") == 4, what="words about it")
            for what in ("raise", "exit", "nonsense", "nothing", "cancel"):
                answer = bench.ask("/formed", {}, {"x-do": what})
                assert kind_of(answer) == (500, "hook_failed"), (what, answer)
            flow.go_on()
        assert flow.longest_s["/plain"] < 5.0, flow.longest_s
        assert {member["restarts"] for member in bench.status()["members"]} == {0}


@row(
    26,
    "a function of the worker.py never returns, or blocks the loop that it runs on",
    seen="that request: 504 hook_timeout after hooks.timeout_s; others are answered meanwhile"
    " (behind a blocked loop only those whose response the worker.py forms have to wait)",
    does="runs each in a thread, or as a task, of its own; gives the request up and says in the log"
    " at which line the function stands",
)
def test_row_26_hooks_that_hang(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, WORKER, "--set", "hooks.timeout_s=4") as bench:
        bench.until_ready()
        with others(bench) as flow:
            answers: list[Any] = []
            seen: list[dict[str, int]] = []
            before = dict(flow.answered)

            def hang(route: str, payload: Any, headers: dict[str, str]) -> None:
                answers.append(bench.ask(route, payload, headers))
                seen.append(dict(flow.answered))

            asked = [
                threading.Thread(target=hang, args=args)
                for args in (
                    ("/parsed", {"do": "hang"}, {}),
                    ("/parsed", {"do": "hang"}, {}),
                    ("/counted", {"count": "hang"}, {}),
                    ("/formed", {}, {"x-do": "hang"}),
                )
            ]
            for thread in asked:
                thread.start()
            flow.go_on()
            assert bench.ask("/formed", {}, {"x-do": "block"})[0] == 200
            for thread in asked:
                thread.join(60)
            assert all(seen[0][route] > before[route] for route in ROUTES), "others waited"
            assert [kind_of(answer) for answer in answers] == [(504, "hook_timeout")] * 4
            flow.go_on()
        assert flow.longest_s["/plain"] < 4.0, "one that needs no function waited for one"
        stands = [n for n, line in enumerate(WORKER.splitlines(), 1) if "time.sleep(1000)" in line]
        assert len(stands) == 2
        for number in stands:
            said = f"worker.py:{number}: it has run for"
            wait_until(lambda s=said: s in bench.said(), what="a word on where it stands")
        assert {member["restarts"] for member in bench.status()["members"]} == {0}


@row(
    26,
    "a function of the worker.py ends its process (os._exit)",
    seen="that request, after a second try: 500 hook_failed, or 502 model_failed where it was"
    " forming the response; others are answered, those that need the worker.py when it runs again",
    does="starts the worker.py again, asks it again what it was asked, and refuses the request that"
    " has killed it twice",
)
def test_row_26_hooks_that_end_their_process(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, WORKER, "--set", "hooks.timeout_s=20") as bench:
        bench.until_ready()
        others_pids = {m["name"]: m["pid"] for m in bench.status()["members"]}
        with others(bench, ("/plain",)) as flow:
            flow.go_on()
            before = flow.answered["/plain"]
            answer = bench.ask("/parsed", {"do": "die"})
            assert kind_of(answer) == (500, "hook_failed"), answer
            between = flow.answered["/plain"]
            died = bench.ask("/formed", {}, {"x-do": "die"})
            assert kind_of(died) == (502, "model_failed") and b"worker.py (or" in died[2], died
            assert before + 2 < between < flow.answered["/plain"] - 2, "others waited"
            flow.go_on()
        assert flow.longest_s["/plain"] < 20.0, "one that needs no function waited for one"
        for route in ROUTES:
            assert bench.ask(route, {"n": 1})[0] == 200, route
        pids = {m["name"]: m["pid"] for m in bench.status()["members"]}
        changed = {name for name in pids if pids[name] != others_pids[name]}
        assert changed == {"hooks"}


@row(
    18,
    "the socket files of a worker.py are deleted",
    seen="requests that need it are answered; within 5 s the files are there again",
    does="looks for its files, the one for whole requests too, and binds them anew",
)
def test_row_18_socket_files_of_a_worker_py_are_deleted(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, WORKER) as bench:
        bench.until_ready()
        directory = Path(bench.facts()["runtime_dir"])
        with others(bench) as flow:
            for name in ("hooks", "hosted"):
                assert (directory / name).is_socket()
                (directory / name).unlink()
                wait_until((directory / name).is_socket, 5.0, f"{name} to be there again")
                flow.go_on()
            replace_adapter(bench)  # its successor connects to both
            flow.go_on()
            remove(directory)
            files = [directory / name for name in ("hooks", "hosted", "control", "jobs")]
            wait_until(lambda: all(file.exists() for file in files), 10.0, "all of them")
            replace_adapter(bench)
            flow.go_on()
        restarts = {m["name"]: m["restarts"] for m in bench.status()["members"] if m["restarts"]}
        assert restarts == {"backend_adapter": 2}


def replace_adapter(bench: Bench) -> None:
    old = bench.member("backend_adapter")["pid"]
    os.kill(old, signal.SIGKILL)

    def replaced() -> bool:
        member = bench.member("backend_adapter")
        return member["pid"] not in (0, old) and member["state"] == "ready"

    wait_until(replaced, 60.0, "another adapter")
