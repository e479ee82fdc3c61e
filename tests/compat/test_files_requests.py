"""What files do with requests and responses: every attribute that their functions touch."""

from __future__ import annotations

import base64
import http.client
import json
from pathlib import Path

import pytest

from tests.compat.bench import Bench, kind_of
from tests.compat.shelf import Shelf

SHELF = Shelf()
file = SHELF.file


@file("""
def parse(payload):
    text = payload.get("text")
    if not isinstance(text, str):
        raise ValueError("text must be a string")
    return {"input": text, "voice": payload.get("voice", "default")}

def count(payload):
    return len(payload["input"])

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT,
    model_healthcheck_url="/health",
    handlers=[HandlerConfig(route="/speak", request_parser=parse, workload_calculator=count)],
)
""")
def a_parser_and_a_calculator_and_no_benchmark(bench: Bench) -> None:
    told = bench.json("/speak", {"text": "hello"})
    assert told["got"] == {"input": "hello", "voice": "default"}
    assert told["raw"] == '{"input": "hello", "voice": "default"}'
    status, _, body = bench.ask("/speak", {"text": 7})
    assert status == 422 and b"text must be a string" in body


@file("""
from vastai.serverless.server.lib.data_types import JsonDataException

def parse(payload):
    if "prompt" not in payload:
        raise JsonDataException({"prompt": "missing parameter"})
    if payload["prompt"] == "boom":
        raise RuntimeError("kaboom")
    return payload

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[HandlerConfig(route="/generate", request_parser=parse)],
)
""")
def a_parser_that_raises(bench: Bench) -> None:
    status, _, body = bench.ask("/generate", {})
    assert status == 422
    assert json.loads(body)["payload"] == {"prompt": "missing parameter"}
    status, _, body = bench.ask("/generate", {"prompt": "boom"})
    assert (status, json.loads(body)["error"]["kind"]) == (500, "hook_failed")
    assert b"kaboom" not in body
    assert bench.json("/generate", {"prompt": "fine"})["got"] == {"prompt": "fine"}


@file("""
def count(payload):
    how = payload["how"]
    if how == "raise":
        raise KeyError("x")
    payload.pop("secret", None)
    return {"nan": float("nan"), "negative": -1, "text": "12", "none": None}.get(how, 5)

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[HandlerConfig(route="/generate", workload_calculator=count)],
)
""")
def a_calculator_that_misbehaves(bench: Bench) -> None:
    for how in ("raise", "nan", "negative", "text", "none", "fine"):
        assert bench.json("/generate", {"how": how})["got"] == {"how": how}
    told = bench.json("/generate", {"how": "fine", "secret": 1})
    assert told["got"] == {"how": "fine"}, "what it takes out of the payload is out"
    served = bench.until_served(6)
    assert served == 4 * 100 + 12 + 2 * 5


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
    assert kind_of(bench.ask("/strict", {"items": [{}]})) == (500, "hook_failed")
    assert bench.json("/strict", {"items": [{"id": 3}]})["got"] == {"items": [3]}


@file("""
from aiohttp import web

async def form(client_request, model_response):
    asked = await client_request.json()
    if model_response.status != 200:
        return web.json_response({"failed": model_response.status}, status=502)
    told = await model_response.json()
    return web.json_response(
        {"path": client_request.path, "asked": asked["payload"], "told": told["got"],
         "kind": model_response.content_type, "model": model_response.headers["X-Model"],
         "agent": client_request.headers.get("X-Agent")},
        headers={"X-Formed": "yes"},
    )

async def broken(client_request, model_response):
    raise RuntimeError("no")

async def nonsense(client_request, model_response):
    return {"not": "a response"}

async def copied(client_request, model_response):
    answer = web.StreamResponse(status=model_response.status)
    answer.content_type = model_response.content_type
    await answer.prepare(client_request)
    async for chunk in model_response.content.iter_any():
        await answer.write(chunk.upper())
    await answer.write_eof()
    return answer

def parse(payload):
    return {"q": payload["q"] + "!"}

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/ask", response_generator=form, request_parser=parse),
        HandlerConfig(route="/broken", response_generator=form),
        HandlerConfig(route="/bad", response_generator=broken),
        HandlerConfig(route="/nonsense", response_generator=nonsense),
        HandlerConfig(route="/stream", response_generator=copied, allow_parallel_requests=True),
    ],
)
""")
def response_generators(bench: Bench) -> None:
    status, headers, body = bench.ask("/ask", {"q": "a"}, {"X-Agent": "me"})
    assert status == 200 and headers["x-formed"] == "yes"
    assert json.loads(body) == {
        "path": "/ask", "asked": {"q": "a"}, "told": {"q": "a!"}, "kind": "application/json",
        "model": "echo", "agent": "me",
    }  # fmt: skip
    assert bench.ask("/broken", {})[0] == 502
    for route in ("/bad", "/nonsense"):
        status, _, body = bench.ask(route, {})
        assert (status, json.loads(body)["error"]["kind"]) == (500, "hook_failed")
    status, headers, body = bench.ask("/stream", {})
    assert (status, body) == (200, b"DATA: 0\n\nDATA: 1\n\nDATA: 2\n\n")
    assert headers["content-type"].startswith("text/event-stream")


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


@pytest.mark.parametrize("name", SHELF)
def test_file(name: str, tmp_path: Path) -> None:
    SHELF.run(name, tmp_path)
