"""Files in the style of those that people have: each loaded, made ready and called."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.compat.bench import Bench, on_the_bench
from tests.kit.wait import wait_until

HEAD = """
from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig
"""
#: What most files end in.
TAIL = """
Worker(worker_config).run()
"""
Check = Callable[[Bench], None]
FILES: dict[str, tuple[str, Check]] = {}


def file(text: str, head: str = HEAD, tail: str = TAIL) -> Callable[[Check], Check]:
    """One file, with what is asked of it."""

    def take(check: Check) -> Check:
        FILES[check.__name__] = (head + text + tail, check)
        return check

    return take


@file("""
MODEL_SERVER_URL = 'http://127.0.0.1'
worker_config = WorkerConfig(
    model_server_url=MODEL_SERVER_URL,
    model_server_port=PORT,
    model_log_file=LOG,
    model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(
            route="/v1/completions",
            workload_calculator=lambda data: data.get("max_tokens", 0),
            allow_parallel_requests=True,
            max_queue_time=60.0,
            benchmark_config=BenchmarkConfig(generator=lambda: {"prompt": "x", "max_tokens": 9}),
        ),
        HandlerConfig(route="/v1/chat/completions", allow_parallel_requests=True,
                      workload_calculator=lambda data: data.get("max_tokens", 0)),
    ],
    log_action_config=LogActionConfig(
        on_load=["READY to serve"], on_error=["Traceback (most recent call last):"],
        on_info=["Downloading"],
    ),
)
""")
def a_text_server(bench: Bench) -> None:
    told = bench.json("/v1/completions", {"prompt": "hi", "max_tokens": 3})
    assert told["got"] == {"prompt": "hi", "max_tokens": 3}
    assert bench.json("/v1/chat/completions", {"messages": []})["path"] == "/v1/chat/completions"
    assert bench.status()["load"]["max_perf"] > 0
    assert bench.ask("/other", {})[0] == 404


@file("""
import random
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file=LOG,
    handlers=[HandlerConfig(
        route="/generate/sync", allow_parallel_requests=False, max_queue_time=10.0,
        benchmark_config=BenchmarkConfig(
            dataset=[{"input": {"seed": random.randint(0, 9)}} for _ in range(3)],
            runs=1, concurrency=100),
        workload_calculator=lambda _: 100.0,
    )],
    log_action_config=LogActionConfig(on_load=["READY"], on_error=["MetadataIncompleteBuffer"]),
)
""")
def an_image_server_without_a_health_path(bench: Bench) -> None:
    told = bench.json("/generate/sync", {"input": {"prompt": "a cat"}})
    assert told["got"] == {"input": {"prompt": "a cat"}}
    assert told["most"] == 1  # the benchmark of a serial handler sends one at a time


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
""")
def functions_without_a_model_server(bench: Bench) -> None:
    assert bench.json("/add", {"a": 1, "b": 2}) == {"result": 3}
    assert bench.json("/block", {"seconds": 0.01}) == {"result": {"slept": 0.01}}
    status, _, body = bench.ask("/add", {"wrong": 1})
    assert (status, json.loads(body)["error"]["kind"]) == (500, "hook_failed")


@file("""
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
""")
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


@file("""
import dataclasses
from typing import Any, Dict
from vastai.serverless.server.lib.data_types import ApiPayload, JsonDataException

@dataclasses.dataclass
class Transcribe(ApiPayload):
    audio: str
    language: str = "en"

    @classmethod
    def for_test(cls) -> "Transcribe":
        return cls(audio="test")

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "Transcribe":
        if "audio" not in json_msg:
            raise JsonDataException({"audio": "missing parameter"})
        return cls(audio=json_msg["audio"], language=json_msg.get("language", "en"))

    def generate_payload_json(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)

    def generate_payload_multipart(self):
        if self.language == "json":
            return None
        return {"file": ("a.wav", self.audio.encode(), "audio/wav"), "language": self.language,
                "tags": ["a", "b"], "skip": None, "flag": True, "more": {"k": 1}, "n": 3}

    def count_workload(self) -> float:
        return float(len(self.audio))

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[HandlerConfig(route="/transcribe", payload_class=Transcribe,
                            benchmark_config=BenchmarkConfig(runs=1, concurrency=2))],
)
""")
def a_payload_class_with_files(bench: Bench) -> None:
    told = bench.json("/transcribe", {"audio": "xyz", "language": "json"})
    assert told["got"] == {"audio": "xyz", "language": "json"}
    told = bench.json("/transcribe", {"audio": "xyz"})
    assert told["type"].startswith("multipart/form-data; boundary=")
    for part in (
        'name="file"; filename="a.wav"\r\ncontent-type: audio/wav\r\n\r\nxyz\r\n',
        'name="tags"\r\n\r\na\r\n', 'name="tags"\r\n\r\nb\r\n', 'name="flag"\r\n\r\ntrue\r\n',
        'name="more"\r\n\r\n{"k": 1}\r\n', 'name="n"\r\n\r\n3\r\n',
    ):  # fmt: skip
        assert part in told["raw"]
    assert 'name="skip"' not in told["raw"]
    assert bench.ask("/transcribe", {})[0] == 422


@file("""
from dataclasses import dataclass, field
from typing import Type
from aiohttp import web, ClientResponse
from vastai.serverless.server.lib.data_types import ApiPayload, EndpointHandler

@dataclass
class Text(ApiPayload):
    text: str

    @classmethod
    def for_test(cls):
        return cls("test")

    @classmethod
    def from_json_msg(cls, json_msg):
        return cls(json_msg["text"])

    def generate_payload_json(self):
        return {"inputs": self.text}

    def count_workload(self):
        return len(self.text)

@dataclass
class TextHandler(EndpointHandler[Text]):
    benchmark_runs: int = 1
    allow_parallel_requests: bool = True

    @property
    def endpoint(self) -> str:
        return "/elsewhere"

    @property
    def healthcheck_endpoint(self):
        return "/health"

    @classmethod
    def payload_cls(cls) -> Type[Text]:
        return Text

    def make_benchmark_payload(self) -> Text:
        return Text.for_test()

    async def generate_client_response(self, client_request, model_response):
        return web.Response(body=await model_response.read(), status=model_response.status,
                            content_type=model_response.content_type)

    async def call_remote_dispatch_function(self, params: dict):
        raise NotImplementedError

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT,
    handlers=[HandlerConfig(route="/text", handler_class=TextHandler)],
)
""")
def a_handler_class(bench: Bench) -> None:
    told = bench.json("/text", {"text": "abc"})
    assert (told["path"], told["got"]) == ("/elsewhere", {"inputs": "abc"})
    assert bench.status()["load"]["max_perf"] > 0


@file("""
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT,
    model_healthcheck_url="http://127.0.0.1:PORT/up",
    handlers=[HandlerConfig(route="/result/*", allow_parallel_requests=True),
              HandlerConfig(route="/jobs/{job_id}", allow_parallel_requests=True)],
    max_sessions=0,
)
""")
def wildcard_routes_and_an_absolute_health_url(bench: Bench) -> None:
    assert bench.json("/result/42/x", {"a": 1})["path"] == "/result/42/x"
    assert bench.json("/jobs/7", {"a": 1})["path"] == "/jobs/7"
    assert bench.ask("/jobs/7/more", {})[0] == 404


@file(
    """
import asyncio, subprocess, sys
from contextlib import asynccontextmanager

@asynccontextmanager
async def life():
    process = subprocess.Popen([sys.executable, "-m", "tests.kit.echo_model", "PORT", LOG],
                               cwd=ROOT)
    print("entered")
    try:
        yield
    finally:
        process.kill()
        print("left")

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="health",
    handlers=[HandlerConfig(route="/generate")], lifecycle=life(),
)
""".replace("ROOT", repr(str(Path(__file__).parents[2])))
)
def a_lifecycle_that_starts_the_model_server(bench: Bench) -> None:
    assert bench.json("/generate", {"a": 1})["got"] == {"a": 1}


FILES["a_lifecycle_factory"] = (
    FILES["a_lifecycle_that_starts_the_model_server"][0].replace(
        "lifecycle=life()", "lifecycle=life"
    ),
    a_lifecycle_that_starts_the_model_server,
)


@file(
    """
import asyncio
worker_config = WorkerConfig(model_server_url="http://127.0.0.1:PORT",
                             model_healthcheck_url="/health")

async def main():
    await Worker(worker_config).run_async(host="127.0.0.1")

if __name__ == "__main__":
    asyncio.run(main())
""",
    tail="",
)
def no_handlers_run_async_and_a_url_with_its_port(bench: Bench) -> None:
    assert bench.json("/", {"a": 1})["path"] == "/"


@file(
    """
import inspect, os
from helpers import ROUTE
assert "lifecycle" in inspect.signature(WorkerConfig).parameters
from vastai.serverless.server.lib.data_types import ApiPayload
assert "generate_payload_multipart" in vars(ApiPayload)
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "ran"), "a") as ran:
    ran.write("x")
with open(LOG, "a"):
    pass
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    handlers=[HandlerConfig(route=ROUTE, max_queue_time=None)],
)
worker = Worker(worker_config)
assert worker.backend.sessions == {}
worker.run(host="127.0.0.1")
""",
    head="""
from vastai_sdk import Worker, WorkerConfig, HandlerConfig
from vastai.serverless.server.worker import Worker as Same
assert Same is Worker
""",
    tail="",
)
def siblings_introspection_and_other_import_paths(bench: Bench) -> None:
    assert bench.json("/from-a-sibling", {"a": 1})["got"] == {"a": 1}
    assert (bench.directory / "ran").read_text() == "x", "it runs once"


@file("""
worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",
    benchmark_route="/generate", benchmark_data=[{"n": 1}],
    handlers=[HandlerConfig(route="/generate", allow_parallel_requests=True, max_queue_time=0)],
)
open(".has_benchmark", "w").write("100")
""")
def a_capacity_that_is_pinned(bench: Bench) -> None:
    assert bench.json("/generate", {"a": 1})["most"] == 1, "nothing was measured"
    assert bench.status()["load"]["max_perf"] == 100


@pytest.mark.parametrize("name", FILES)
def test_file(name: str, tmp_path: Path) -> None:
    text, check = FILES[name]
    ours = "subprocess" in text or "remote_function" in text
    files = {"helpers.py": 'ROUTE = "/from-a-sibling"\n'}
    with on_the_bench(tmp_path, text, files=files, model=not ours) as bench:
        bench.until_ready()
        check(bench)


LEGACY = """
import os
import logging
import dataclasses
from typing import Type
from aiohttp import web
from lib.backend import Backend, LogAction
from lib.data_types import EndpointHandler
from lib.server import start_server
from .data_types import InputData

logging.basicConfig(level=logging.DEBUG)

@dataclasses.dataclass
class GenerateHandler(EndpointHandler[InputData]):
    @property
    def endpoint(self) -> str:
        return "/generate"

    @property
    def healthcheck_endpoint(self) -> str:
        return "http://127.0.0.1:PORT/health"

    @classmethod
    def payload_cls(cls) -> Type[InputData]:
        return InputData

    def make_benchmark_payload(self) -> InputData:
        return InputData.for_test()

    async def generate_client_response(self, client_request, model_response):
        if model_response.status != 200:
            return web.Response(status=model_response.status)
        return web.json_response(data=await model_response.json())

class StreamHandler(EndpointHandler[InputData]):
    @property
    def endpoint(self) -> str:
        return "/stream"

    @classmethod
    def payload_cls(cls):
        return InputData

    def make_benchmark_payload(self):
        return InputData.for_test()

    async def generate_response(self, request, response):
        res = web.StreamResponse()
        res.content_type = "text/event-stream"
        await res.prepare(request)
        async for chunk in response.content:
            await res.write(chunk)
        await res.write_eof()
        return res

backend = Backend(
    model_server_url="http://127.0.0.1:PORT", model_log_file=os.environ["MODEL_LOG"],
    allow_parallel_requests=True,
    benchmark_handler=GenerateHandler(benchmark_runs=1, benchmark_words=256),
    log_actions=[(LogAction.ModelLoaded, "READY"), (LogAction.ModelError, "Error: Webserver")],
)

async def handle_ping(_):
    return web.Response(body="pong")

routes = [
    web.post("/generate", backend.create_handler(GenerateHandler())),
    web.post("/generate_stream", backend.create_handler(StreamHandler())),
    web.get("/ping", handle_ping),
]

if __name__ == "__main__":
    start_server(backend, routes)
"""
LEGACY_TYPES = """
import dataclasses
from lib.data_types import ApiPayload, JsonDataException

@dataclasses.dataclass
class InputData(ApiPayload):
    inputs: str

    @classmethod
    def for_test(cls):
        return cls("test")

    def generate_payload_json(self):
        return {"inputs": self.inputs}

    def count_workload(self):
        return len(self.inputs)

    @classmethod
    def from_json_msg(cls, json_msg):
        if "inputs" not in json_msg:
            raise JsonDataException({"inputs": "missing parameter"})
        return cls(json_msg["inputs"])
"""


def test_a_directory_of_2024(tmp_path: Path) -> None:
    files = {"workers/tgi/server.py": LEGACY, "workers/tgi/data_types.py": LEGACY_TYPES}
    log = str(tmp_path / "model.log")
    script = "workers/tgi/server.py"
    with on_the_bench(tmp_path, "", files=files, script=script, MODEL_LOG=log) as bench:
        bench.until_ready()
        assert bench.json("/generate", {"inputs": "abc"})["got"] == {"inputs": "abc"}
        status, _, body = bench.ask("/generate_stream", {"inputs": "abc"})
        assert (status, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
        assert bench.ask("/generate", {})[0] == 422
        assert bench.ask("/ping", {})[0] == 404
        assert bench.status()["load"]["max_perf"] > 0


#: Run by every interpreter that starts: the real package is not there.
NOT_INSTALLED = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in ("vastai", "vastai_sdk") else found(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""
CHILDREN = """
import multiprocessing
from vastai import Worker, WorkerConfig, HandlerConfig
from vastai.serverless.server.lib.data_types import ApiPayload
from vastai_sdk import Worker as Same

def square(queue, n):
    assert Same is Worker and Worker.__module__ == "ingress.hooks.worker"
    queue.put((n * n, __name__))

def ask_child(n, method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=square, args=(queue, n))
    child.start()
    child.join(50)
    return [*queue.get(timeout=1), child.exitcode] if child.exitcode == 0 else child.exitcode

def run():
    Worker(WorkerConfig(handlers=[HandlerConfig("/square", remote_function=ask_child)])).run()
"""
GUARDED = CHILDREN + "if __name__ == '__main__':\n    run()\n"


@pytest.mark.parametrize("installed", [True, False])
def test_children_of_multiprocessing_know_the_names(installed: bool, tmp_path: Path) -> None:
    files = {} if installed else {"hidden/sitecustomize.py": NOT_INSTALLED}
    hidden = str(tmp_path / "hidden")
    with on_the_bench(tmp_path, GUARDED, files=files, model=False, PYTHONPATH=hidden) as bench:
        bench.until_ready()
        for method in ("spawn", "forkserver"):
            told = bench.json("/square", {"n": 7, "method": method})
            assert told == {"result": [49, "__mp_main__", 0]}, bench.output


def test_a_child_runs_no_second_worker(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, CHILDREN + "run()\n", model=False) as bench:
        bench.until_ready()
        assert bench.json("/square", {"n": 7, "method": "spawn"}) == {"result": 1}
        hooks = Path(bench.state_dir) / "logs" / "hooks.log"
        text = "put what only the parent shall do under  if __name__ == '__main__':"
        wait_until(lambda: text in hooks.read_text(), 60, "the child's own words")


def test_a_child_of_a_directory_of_2024_imports_its_neighbours(tmp_path: Path) -> None:
    text = GUARDED.replace("import multi", "from .near import NEAR\nimport multi")
    text = text.replace("n * n", "n * NEAR")
    files = {"workers/x/server.py": text, "workers/x/near.py": "NEAR = 3\n"}
    script = "workers/x/server.py"
    with on_the_bench(tmp_path, "", files=files, script=script, model=False) as bench:
        bench.until_ready()
        told = bench.json("/square", {"n": 7, "method": "spawn"})
        assert told == {"result": [21, "__mp_main__", 0]}, bench.output
