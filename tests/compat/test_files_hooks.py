"""What files do with requests and responses: every attribute that their functions touch."""

from __future__ import annotations

import base64
import http.client
import json
from pathlib import Path

import pytest

from tests.compat.bench import Bench
from tests.compat.shelf import Shelf

SHELF = Shelf()
file = SHELF.file
FAILED = (500, "hook_failed")


def kind(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and kind of a typed error."""
    return answer[0], json.loads(answer[2])["error"]["kind"]


@file("""
import base64, json
import aiohttp
from aiohttp import ClientResponse, web

async def looked(client_request: web.Request, model_response: ClientResponse) -> web.Response:
    text = await model_response.text()
    whole = await client_request.text()
    again = await client_request.json()
    return web.json_response({
        "same": json.loads(whole) == again, "again": await client_request.read() == whole.encode(),
        "told": json.loads(text)["got"], "ok": model_response.ok,
        "method": client_request.method, "path": client_request.path,
        "query": dict(client_request.query), "target": client_request.path_qs.split("?")[0],
        "kind": client_request.content_type, "length": client_request.content_length,
        "auth": client_request.headers.get("Authorization"),
        "model": [name for name in model_response.headers if name.lower().startswith("x-")],
        "from": model_response.url.path, "reason": model_response.reason,
    }, status=202, reason="Looked")

async def spoken(client_request, model_response):
    if not model_response.content_type.startswith("audio/"):
        return web.Response(status=model_response.status, body=await model_response.read())
    sound = bytearray()
    async for piece in model_response.content.iter_chunked(3):
        sound += piece
    return web.json_response({"audio": base64.b64encode(sound).decode()})

async def raw(client_request, model_response):
    return web.Response(
        body=await model_response.read(), status=model_response.status,
        content_type=model_response.content_type,
        headers={name: value for name, value in model_response.headers.items()
                 if name.lower() != "content-type"})

async def released(client_request, model_response):
    status = model_response.status
    await model_response.release()
    return web.Response(text=f"was {status}", status=200, content_type="text/plain")

async def called_back(client_request, model_response):
    asked = (await client_request.json())["payload"]
    told = await model_response.json()
    async with aiohttp.ClientSession() as session:
        async with session.post(asked["callback"], json={"output": told["got"]}) as answer:
            received = await answer.json()
    return web.json_response({"called": received["path"], "with": received["got"]})

async def raised(client_request, model_response):
    model_response.raise_for_status()
    return web.json_response(await model_response.json(content_type=None))

def job(payload):
    return {"id": payload.get("id", 0)}

options = dict(allow_parallel_requests=True, max_queue_time=10.0)
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/looked", response_generator=looked, **options),
        HandlerConfig(route="/sound", response_generator=spoken, **options),
        HandlerConfig(route="/raw", response_generator=raw, **options),
        HandlerConfig(route="/released", response_generator=released, **options),
        HandlerConfig(route="/called", response_generator=called_back, **options),
        HandlerConfig(route="/broken", response_generator=raised, **options),
        HandlerConfig(route="/result/*", response_generator=looked, request_parser=job, **options),
    ],
)
""")
def response_generators_that_touch_everything(bench: Bench) -> None:
    status, _, body = bench.ask(
        "/looked?api_key=secret",
        {"a": "ü"},
        {"Authorization": "Bearer secret", "Content-Type": "application/json"},
    )
    told = json.loads(body)
    assert status == 202 and told.pop("length") > 10
    assert told == {
        "same": True, "again": True, "told": {"a": "ü"}, "ok": True, "method": "POST",
        "path": "/looked", "target": "/looked", "query": {}, "kind": "application/json",
        "auth": None, "model": ["x-model"], "from": "/looked", "reason": "OK",
    }  # fmt: skip
    assert base64.b64decode(bench.json("/sound", {})["audio"]) == b"\x00\xff\x00\xff"
    status, headers, body = bench.ask("/raw", {"n": 1})
    assert (status, headers["x-model"]) == (200, "echo") and json.loads(body)["got"] == {"n": 1}
    assert headers["content-type"].startswith("application/json")
    status, headers, body = bench.ask("/released", {})
    assert (body, headers["content-type"]) == (b"was 200", "text/plain; charset=utf-8")
    url = f"http://127.0.0.1:{bench.model_port}/hook"
    assert bench.json("/called", {"callback": url, "x": 1}) == {
        "called": "/hook", "with": {"output": {"callback": url, "x": 1}}
    }  # fmt: skip
    assert bench.ask("/called", {"callback": "http://127.0.0.1:1/"})[0] in (500, 502)
    assert bench.ask("/broken", {})[0] in (500, 502)
    told = json.loads(bench.ask("/result/7/image", {"id": 7, "x": 1})[2])
    assert (told["path"], told["from"], told["told"]) == ("/result/7/image",) * 2 + ({"id": 7},)


@file("""
import json
from aiohttp import web

async def events(content):
    async for line in content:
        yield b"data: " + json.dumps({"part": json.loads(line)["n"]}).encode() + b"\\n\\n"

async def reframed(client_request, model_response):
    answer = web.StreamResponse(status=200, headers={
        "Content-Type": "text/event-stream", "Cache-Control": "no-cache",
        "Connection": "keep-alive", "X-Accel-Buffering": "no"})
    answer.enable_chunked_encoding()
    await answer.prepare(client_request)
    try:
        async for event in events(model_response.content):
            await answer.write(event)
        await answer.write(b"data: [DONE]\\n\\n")
    finally:
        await answer.write_eof()
    return answer

async def half(client_request, model_response):
    answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await answer.prepare(client_request)
    while line := await model_response.content.readline():
        await answer.write(line)
        if b"1" in line:
            raise RuntimeError("in the middle")
    return answer

async def parts(client_request, model_response):
    answer = web.StreamResponse()
    await answer.prepare(client_request)
    async for data, _end in model_response.content.iter_chunks():
        await answer.write(data)
    return answer

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/lines", response_generator=reframed, allow_parallel_requests=True),
        HandlerConfig(route="/plain/lines"),
        HandlerConfig(route="/stream", response_generator=parts),
        HandlerConfig(route="/half", response_generator=half, request_parser=lambda p: p),
    ],
)
""")
def streams_that_the_file_forms(bench: Bench) -> None:
    status, headers, body = bench.ask("/lines", {})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
    assert body == b"".join(b'data: {"part": %d}\n\n' % n for n in range(3)) + b"data: [DONE]\n\n"
    assert bench.ask("/stream", {})[2] == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        bench.ask("/half", {"n": 1})
    assert bench.json("/plain/lines", {"n": 1})["got"] == {"n": 1}, "and nobody else minds"


@file("""
import copy, json, threading, time
from vastai.serverless.server.lib.data_types import JsonDataException

busy = {"share": 0.0}

def watch():
    while True:
        busy["share"] = 0.5
        time.sleep(0.05)

threading.Thread(target=watch, daemon=True).start()
LIMIT = 3
seen = []

def nested(request):
    data = request
    if request.get("input") is not None:
        data = request.get("input")
    return data

def in_place(payload):
    payload["added"] = len(seen)
    payload.pop("removed", None)
    seen.append(copy.deepcopy(payload))
    return payload

def strict(payload):
    if not isinstance(payload.get("items"), list):
        raise JsonDataException({"items": "must be a list", "hint": {"see": "the docs"}})
    if len(payload["items"]) > LIMIT:
        raise JsonDataException("too many items")
    if not payload["items"]:
        raise ValueError
    return {"items": [item["id"] for item in payload["items"]]}

class Counter:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, payload):
        return self.factor * len(json.dumps(payload))

class Rules:
    @staticmethod
    def pass_on(payload):
        return payload

    def count(self, payload):
        return busy["share"]

rules = Rules()
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/nested", request_parser=nested, workload_calculator=Counter(2)),
        HandlerConfig(route="/in-place", request_parser=in_place, workload_calculator=lambda d: 0),
        HandlerConfig(route="/strict", request_parser=strict),
        HandlerConfig(route="/rules", request_parser=Rules.pass_on, healthcheck="/health",
                      workload_calculator=rules.count),
    ],
)
""")
def parsers_of_every_kind(bench: Bench) -> None:
    assert bench.json("/nested", {"input": {"a": 1}})["got"] == {"a": 1}
    assert bench.json("/nested", {"input": ["a", "b"]})["got"] == ["a", "b"]
    assert bench.json("/in-place", {"removed": 1})["got"] == {"added": 0}
    assert bench.json("/in-place", {"removed": 1})["got"] == {"added": 1}
    assert bench.json("/rules", {"é": [None, True, 1.5]})["got"] == {"é": [None, True, 1.5]}
    served = 2 * len('{"a": 1}') + 2 * len('["a", "b"]') + 0.5
    assert bench.until_served(5) == pytest.approx(served, abs=0.01)
    status, _, body = bench.ask("/strict", {"items": 1})
    assert status == 422
    assert json.loads(body)["payload"] == {"items": "must be a list", "hint": {"see": "the docs"}}
    status, _, body = bench.ask("/strict", {"items": [1, 2, 3, 4]})
    assert status == 422 and b"too many items" in body
    assert bench.ask("/strict", {"items": []})[0] == 422
    assert kind(bench.ask("/strict", {"items": [{}]})) == FAILED
    assert bench.json("/strict", {"items": [{"id": 3}]})["got"] == {"items": [3]}


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
    assert kind(bench.ask("/not-json", {})) == FAILED
    assert kind(bench.ask("/numbers", {})) == FAILED
    assert bench.ask("/refuses", {"x": 1})[0] == 422
    assert kind(bench.ask("/infer", {"y": 1})) == FAILED


@file("""
import dataclasses, random
from typing import Any, Dict, Optional, Type
from vastai.serverless.server.lib.data_types import (
    ApiPayload, AuthData, EndpointHandler, JsonDataException,
)
from aiohttp import web

@dataclasses.dataclass
class Picture(ApiPayload):
    prompt: str
    steps: int = 4
    seed: Optional[int] = None

    @classmethod
    def for_test(cls):
        return cls(prompt="test", steps=1, seed=random.randint(0, 9))

    def generate_payload_json(self) -> Dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def count_workload(self) -> float:
        return self.steps * 10

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "Picture":
        names = {f.name for f in dataclasses.fields(cls)}
        faults = {name: "unknown" for name in json_msg if name not in names}
        if "prompt" not in json_msg:
            faults["prompt"] = "missing parameter"
        if faults:
            raise JsonDataException(faults)
        return cls(**json_msg)

@dataclasses.dataclass
class Form(Picture):
    def generate_payload_multipart(self):
        return {"prompt": self.prompt, "steps": self.steps, "mask": None}

@dataclasses.dataclass
class Pictures(EndpointHandler[Picture]):
    benchmark_runs: int = 1
    concurrency: int = 2
    do_warmup_benchmark: bool = False
    max_queue_time: float = 60.0

    @property
    def endpoint(self):
        return "/sdapi/txt2img"

    @property
    def healthcheck_endpoint(self):
        return None

    @classmethod
    def payload_cls(cls) -> Type[Picture]:
        return Picture

    def make_benchmark_payload(self):
        return Picture.for_test()

    @classmethod
    def get_data_from_request(cls, req_data):
        if "auth_data" not in req_data:
            req_data["auth_data"] = dict.fromkeys(
                ("cost", "endpoint", "reqnum", "request_idx", "signature", "url"), "")
        auth, payload, session = super().get_data_from_request(req_data)
        payload.prompt = payload.prompt.strip()
        return auth, payload, session

    async def generate_client_response(self, client_request, model_response):
        match model_response.status:
            case 200:
                told = await model_response.json()
                return web.json_response({"at": told["path"], "sent": told["got"]})
            case code:
                return web.Response(status=code)

    async def call_remote_dispatch_function(self, params):
        raise NotImplementedError

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/pictures", handler_class=Pictures),
        HandlerConfig(route="/form", payload_class=Form, allow_parallel_requests=True),
        HandlerConfig(route="/json", payload_class=Picture),
    ],
)
""")
def classes_of_ones_own(bench: Bench) -> None:
    told = bench.json("/pictures", {"prompt": " a quay ", "seed": 0})
    assert told == {"at": "/sdapi/txt2img", "sent": {"prompt": "a quay", "steps": 4, "seed": 0}}
    raw = bench.json("/form", {"prompt": "ü", "steps": 2})["raw"]
    assert 'name="prompt"\r\n\r\nÃ¼\r\n' in raw and 'name="steps"\r\n\r\n2\r\n' in raw
    assert 'name="mask"' not in raw
    assert bench.json("/json", {"prompt": "x"})["got"] == {"prompt": "x", "steps": 4}
    status, _, body = bench.ask("/json", {"size": 1})
    assert status == 422
    assert json.loads(body)["payload"] == {"size": "unknown", "prompt": "missing parameter"}
    assert bench.status()["load"]["max_perf"] > 0
    assert bench.until_served(3) == 40 + 20 + 40


@pytest.mark.parametrize("name", SHELF)
def test_file(name: str, tmp_path: Path) -> None:
    SHELF.run(name, tmp_path)
