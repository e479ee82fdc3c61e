"""What single files do that most do not."""

from __future__ import annotations

from pathlib import Path

from tests.compat.bench import on_the_bench

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
