"""What single files do that most do not."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tests.compat.bench import Bench, on_the_bench, until_said
from tests.kit.wait import wait_until

HEAD = """
from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig
MODEL = dict(model_server_url="http://127.0.0.1", model_server_port=PORT,
             model_healthcheck_url="/health")
"""


def test_a_figure_that_is_pinned_while_the_model_loads(tmp_path: Path) -> None:
    text = """
from contextlib import asynccontextmanager

@asynccontextmanager
async def lifecycle():
    with open(".has_benchmark", "w") as pinned:
        pinned.write("100")
    yield

Worker(WorkerConfig(**MODEL, lifecycle=lifecycle, handlers=[
    HandlerConfig("/run", benchmark_config=BenchmarkConfig(dataset=[{"a": 1}]))])).run()
"""
    with on_the_bench(tmp_path, HEAD + text) as bench:
        bench.until_ready()
        assert bench.status()["load"]["max_perf"] == 100.0
        assert (tmp_path / ".has_benchmark").read_text() == "100"
        assert bench.json("/run", {})["path"] == "/run"


def kill_hooks(bench: Bench) -> None:
    old = bench.member("hooks")["pid"]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: bench.member("hooks")["pid"] not in (0, old), 60, "its successor")


def test_a_file_of_another_name_in_another_place(tmp_path: Path) -> None:
    """With a worker.py here that is somebody else's; and after its death it is the same file."""
    text = (
        HEAD
        + """
Worker(WorkerConfig(**MODEL, handlers=[
    HandlerConfig("/mine", request_parser=lambda payload: {"by": __file__})])).run()
"""
    )
    files = {"deep/mine.py": text, "worker.py": "raise SystemExit('the wrong file')"}
    with on_the_bench(tmp_path, "", files=files, script="deep/mine.py") as bench:
        bench.until_ready()
        for _ in range(2):
            assert bench.json("/mine", {})["got"] == {"by": str(tmp_path / "deep" / "mine.py")}
            kill_hooks(bench)
        assert "the wrong file" not in bench.output
        assert "start the worker anew" not in bench.output


def test_a_restart_lets_requests_end_before_the_lifecycle_is_left(tmp_path: Path) -> None:
    text = """
import asyncio
from contextlib import asynccontextmanager

@asynccontextmanager
async def lifecycle():
    state["up"] = True
    yield
    state["up"] = False

state = {}

async def slow(seconds):
    await asyncio.sleep(seconds)
    return state["up"]

Worker(WorkerConfig(**MODEL, lifecycle=lifecycle, handlers=[
    HandlerConfig("/slow", remote_function=slow, allow_parallel_requests=True)])).run()
"""
    with on_the_bench(tmp_path, HEAD + text) as bench:
        bench.until_ready()
        told: list[Any] = []
        asking = [
            threading.Thread(target=lambda: told.append(bench.json("/slow", {"seconds": 1.5})))
            for _ in range(2)
        ]
        asking[0].start()
        wait_until(lambda: bench.status()["queue"]["running"], what="it runs")
        old = bench.member("hooks")["pid"]
        bench.say("restart", "hooks")
        asking[1].start()  # waits for the successor
        for each in asking:
            each.join()
        assert told == [{"result": True}] * 2
        assert bench.member("hooks")["pid"] != old


def test_what_a_file_says_by_variables_and_routes_of_its_own(tmp_path: Path) -> None:
    """It is heard where that makes sense here, and told where it does not."""
    text = """
import os
from aiohttp import web
os.environ.setdefault("UNSECURED", "true")
os.environ["WORKER_PORT"] = "8000"

async def ping(request):
    return web.Response(text="pong")

worker = Worker(WorkerConfig(**MODEL, handlers=[HandlerConfig("/run")]))
worker.routes.append(web.get("/ping", ping))
worker.run()
"""
    with on_the_bench(tmp_path, HEAD + text, signatures=True) as bench:
        until_said(bench, "WORKER_PORT, which it sets, means nothing to the worker")
        until_said(bench, "the route /ping is answered by the file itself: it is left out")
        bench.until_ready()
        assert bench.json("/run", {})["path"] == "/run"  # no signature is asked for


def test_a_worker_that_runs_in_a_thread_and_what_is_registered_for_the_end(tmp_path: Path) -> None:
    text = """
import atexit, threading
atexit.register(lambda: open("ended", "w").close())
never = threading.Thread(target=threading.Event().wait)
never.start()
worker = Worker(WorkerConfig(**MODEL, handlers=[HandlerConfig("/run")]))
threading.Thread(target=worker.run).start()
"""
    with on_the_bench(tmp_path, HEAD + text) as bench:
        bench.until_ready()
        assert bench.json("/run", {})["path"] == "/run"
        began = time.monotonic()
        bench.signal(signal.SIGTERM)
        assert bench.until_gone() == 0
        assert time.monotonic() - began < 8, "nobody waits for the thread that never ends"
        assert (tmp_path / "ended").exists()


def test_headers_that_are_passed_on_whole(tmp_path: Path) -> None:
    text = """
from aiohttp import web

async def whole(client_request, model_response):
    headers = {k: v for k, v in model_response.headers.items() if k.lower() != "content-type"}
    return web.Response(body=await model_response.read(), headers=headers,
                        content_type=model_response.content_type)

Worker(WorkerConfig(**MODEL, handlers=[
    HandlerConfig("/stream", response_generator=whole, allow_parallel_requests=True),
    HandlerConfig("/other", response_generator=whole, allow_parallel_requests=True)])).run()
"""
    with on_the_bench(tmp_path, HEAD + text) as bench:
        bench.until_ready()
        for _ in range(2):
            status, headers, body = bench.ask("/stream", {})
            assert (status, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
            assert headers["content-length"] == str(len(body))
        status, headers, _ = bench.ask("/other", {})
        assert (status, headers["x-model"]) == (200, "echo")


def test_a_package_of_ones_own_that_is_called_lib(tmp_path: Path) -> None:
    text = """
from lib import words
from lib.backend import NAME

def named(payload):
    return {**payload, "name": NAME, "word": words.WORD}

Worker(WorkerConfig(**MODEL, handlers=[HandlerConfig("/run", request_parser=named)])).run()
"""
    files = {
        "lib/__init__.py": "",
        "lib/words.py": 'WORD = "harbour"\n',
        "lib/backend.py": 'NAME = "mine"\n',
    }
    with on_the_bench(tmp_path, HEAD + text, files=files) as bench:
        bench.until_ready()
        assert bench.json("/run", {})["got"] == {"name": "mine", "word": "harbour"}
