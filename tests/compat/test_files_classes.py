"""Files with payload and handler classes of their own; directories in the style of 2024."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compat.bench import Bench, on_the_bench
from tests.compat.shelf import Shelf

SHELF = Shelf()
file = SHELF.file


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
    web.post("/again", backend.create_handler(GenerateHandler())),
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
        for route in ("/generate", "/again"):
            assert bench.json(route, {"inputs": "abc"})["got"] == {"inputs": "abc"}
        status, _, body = bench.ask("/generate_stream", {"inputs": "abc"})
        assert (status, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
        assert bench.ask("/generate", {})[0] == 422
        assert bench.ask("/ping", {})[0] == 404
        assert bench.status()["load"]["max_perf"] > 0
