"""Files whose functions stand in for a model server."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.compat.bench import Bench, kind_of
from tests.compat.shelf import Shelf
from tests.kit.wait import wait_until

SHELF = Shelf()
file = SHELF.file


@file(
    """
import asyncio, time

async def add(a, b=0):
    await asyncio.sleep(0)
    return a + b

def block(seconds):
    time.sleep(seconds)
    return {"slept": seconds}

worker_config = WorkerConfig(
    handlers=[
        HandlerConfig(route="/add", remote_function=add, is_remote_dispatch=True,
                      allow_parallel_requests=True,
                      benchmark_config=BenchmarkConfig(dataset=[{"a": 1, "b": 2}], runs=1)),
        HandlerConfig(route="/block", remote_function=block, is_remote_dispatch=True,
                      allow_parallel_requests=True),
    ],
)
""",
    model=False,
)
def functions_without_a_model_server(bench: Bench) -> None:
    assert bench.json("/add", {"a": 1, "b": 2}) == {"result": 3}
    assert bench.json("/block", {"seconds": 0.01}) == {"result": {"slept": 0.01}}
    status, _, body = bench.ask("/add", {"wrong": 1})
    assert (status, json.loads(body)["error"]["kind"]) == (500, "hook_failed")


@file(
    """
import asyncio
from contextlib import asynccontextmanager

@asynccontextmanager
async def nothing():
    yield

async def reserve(**params):
    try:
        await asyncio.sleep(float(params.get("duration", 3600)))
    except asyncio.CancelledError:
        print("RELEASED")
        raise
    return {"released": True}

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=1, lifecycle=nothing(),
    handlers=[HandlerConfig(
        route="/reserve", remote_function=reserve, workload_calculator=lambda _payload: 100.0,
        benchmark_config=BenchmarkConfig(generator=lambda: {"duration": 0.001}, runs=1,
                                         concurrency=1, do_warmup=False))],
    log_action_config=LogActionConfig(),
)
""",
    model=False,
)
def a_reservation_that_ends_when_its_client_leaves(bench: Bench) -> None:
    assert bench.json("/reserve", {"duration": 0}) == {"result": {"released": True}}
    url = urlsplit(bench.facts()["worker_url"])
    with socket.create_connection((url.hostname, url.port)) as client:
        body = b'{"payload": {}}'
        client.sendall(
            b"POST /reserve HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        client.sendall(body)
        wait_until(lambda: bench.status()["queue"]["running"] == 1, 60, "it to run")
    hooks = Path(bench.state_dir) / "logs" / "hooks.log"
    wait_until(
        lambda: hooks.exists() and "RELEASED" in hooks.read_text(), 60, "the function to hear of it"
    )


@file(
    """
import asyncio, contextlib, os
from aiohttp import web

held = None

async def release(_request):
    if held is None:
        return web.json_response({"released": False})
    held.set()
    return web.json_response({"released": True})

async def pulse(_request):
    return web.Response(text="ok")

@contextlib.asynccontextmanager
async def control():
    app = web.Application()
    app.add_routes([web.post("/release", release), web.get("/pulse", pulse)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()

async def hold(**params: object) -> dict:
    global held
    if params.get("measure"):
        return {"ok": True}
    held = asyncio.Event()
    try:
        await asyncio.wait_for(held.wait(), timeout=float(params.get("most", 60)))
    finally:
        held = None
    return {"held": True}

with open(".has_benchmark", "w") as pinned:
    pinned.write("100")
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/pulse",
    lifecycle=control(),
    handlers=[HandlerConfig(
        route="/hold", remote_function=hold, max_queue_time=0.0, allow_parallel_requests=False,
        workload_calculator=lambda _payload: 100.0,
        benchmark_config=BenchmarkConfig(generator=lambda: {"measure": True}, runs=1,
                                         concurrency=1, do_warmup=False))],
)
""",
    model=False,
)
def a_reservation_that_is_given_back(bench: Bench) -> None:
    """Only functions, and a health path of a server that the lifecycle runs."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(bench.json("/hold", {})), daemon=True)
    thread.start()
    wait_until(lambda: bench.status()["queue"]["running"] == 1, 30, "it to be held")
    status, headers, body = bench.ask("/hold", {})
    assert (status, json.loads(body)["error"]["kind"]) == (429, "queue_time"), body
    assert int(headers["retry-after"]) >= 1
    wait_until(lambda: post(bench.model_port, "/release")["released"], 30, "it to be given back")
    thread.join(30)
    assert got == [{"result": {"held": True}}]
    assert bench.status()["load"]["max_perf"] == 100


def post(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, b"{}")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@file(
    """
import asyncio, dataclasses, functools, os, threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

gate = asyncio.Semaphore(2)
threads = ThreadPoolExecutor(max_workers=2)
count = 0

@dataclasses.dataclass
class Result:
    value: int
    tags: list[str] = dataclasses.field(default_factory=list)

def square(x):
    return x * x, os.getpid()

async def gated(x: int, *, tags=()):
    global count
    async with gate:
        count += 1
        loop = asyncio.get_running_loop()
        value, pid = await loop.run_in_executor(threads, functools.partial(square, x))
    return {**dataclasses.asdict(Result(value, list(tags))), "count": count}

async def in_a_process(x):
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(max_workers=1) as pool:
        value, pid = await loop.run_in_executor(pool, square, x)
    return {"value": value, "elsewhere": pid != os.getpid()}

def plain(x=1):
    return {"value": x, "main": threading.current_thread() is threading.main_thread()}

class Model:
    def __init__(self):
        self.calls = 0

    async def __call__(self, **params):
        self.calls += 1
        return {"calls": self.calls, "got": params}

    async def infer(self, x):
        return x

async def not_json():
    return Result(1)

async def numbers():
    for n in range(3):
        yield n

async def refuses(x):
    raise ValueError("x is not for us")

model = Model()
worker_config = WorkerConfig(
    model_log_file=LOG,
    handlers=[
        HandlerConfig(route="/gated", remote_function=gated, allow_parallel_requests=True,
                      benchmark_config=BenchmarkConfig(generator=lambda: {"x": 2}, runs=2,
                                                       concurrency=4)),
        HandlerConfig(route="/process", remote_function=in_a_process, max_queue_time=60.0),
        HandlerConfig(route="/plain", remote_function=plain),
        HandlerConfig(route="/model", remote_function=model),
        HandlerConfig(route="/infer", remote_function=model.infer),
        HandlerConfig(route="/partial", remote_function=functools.partial(gated, 3)),
        HandlerConfig(route="/not-json", remote_function=not_json),
        HandlerConfig(route="/numbers", remote_function=numbers),
        HandlerConfig(route="/refuses", remote_function=refuses),
    ],
    log_action_config=LogActionConfig(on_load=["imported"]),
)
with open(LOG, "a") as log:
    log.write("imported\\n")
""",
    model=False,
)
def functions_of_every_kind(bench: Bench) -> None:
    told = bench.json("/gated", {"x": 3, "tags": ["a"]})["result"]
    assert (told["value"], told["tags"]) == (9, ["a"])
    assert told["count"] == 1 + 8 + 1, "one to warm up, two rounds of four, and this"
    assert bench.json("/process", {"x": 5}) == {"result": {"value": 25, "elsewhere": True}}
    assert bench.json("/plain", {}) == {"result": {"value": 1, "main": False}}
    assert bench.json("/model", {"x": 1})["result"] == {"calls": 1, "got": {"x": 1}}
    assert bench.json("/model", {"x": 1})["result"]["calls"] == 2
    assert bench.json("/infer", {"x": [1]}) == {"result": [1]}
    assert bench.json("/partial", {})["result"]["value"] == 9
    assert kind_of(bench.ask("/not-json", {})) == (500, "hook_failed")
    assert kind_of(bench.ask("/numbers", {})) == (500, "hook_failed")
    assert bench.ask("/refuses", {"x": 1})[0] == 422
    assert kind_of(bench.ask("/infer", {"y": 1})) == (500, "hook_failed")


@pytest.mark.parametrize("name", SHELF)
def test_file(name: str, tmp_path: Path) -> None:
    SHELF.run(name, tmp_path)
