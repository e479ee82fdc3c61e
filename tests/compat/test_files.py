"""Whole files in the style of those that people have: each loaded, made ready and called."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.compat.bench import Bench
from tests.compat.shelf import Shelf

SHELF = Shelf()
file = SHELF.file


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
    beside={"helpers.py": 'ROUTE = "/from-a-sibling"\n'},
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


@file(
    """
import argparse, logging, os, sys
from typing import Any, Dict, Optional

logging.basicConfig(level=logging.DEBUG, format="%(asctime)s[%(levelname)-5s] %(message)s")
log = logging.getLogger(__file__)
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=int(os.environ.get("MODEL_PORT", PORT)))
parser.add_argument("--debug", action="store_true")
args = parser.parse_args()
extra, unknown = parser.parse_known_args()
assert unknown == [] and len(sys.argv) == 1 and os.path.samefile(sys.argv[0], __file__)

MODEL = os.environ["MODEL_NAME"].split("/")[-1]
for name in ("WORKER_PORT", "CONTAINER_ID", "REPORT_ADDR"):
    log.info("%s=%s", name, os.environ[name])
port_variable = f"VAST_TCP_PORT_{os.environ['WORKER_PORT']}"
assert int(os.environ["CONTAINER_ID"]) == 123 and os.environ[port_variable] == "40123"

def named(payload: Dict[str, Any]) -> Dict[str, Any]:
    payload.setdefault("model", MODEL)
    return payload

worker_config = WorkerConfig(
    model_server_url="http://localhost/", model_server_port=args.port,
    model_healthcheck_url=os.environ.get("MODEL_HEALTH_ENDPOINT", "/health"),
    handlers=[HandlerConfig(route="/v1/embeddings", request_parser=named,
                            allow_parallel_requests=True)],
    max_sessions=None,
)
""",
    tail="""
Worker(worker_config).run(host="127.0.0.1", reuse_port=True, backlog=128)
""",
    MODEL_NAME="org/a-model",
    WORKER_PORT="3999",
    CONTAINER_ID="123",
    VAST_TCP_PORT_3999="40123",
    REPORT_ADDR="",
)
def arguments_variables_and_logging(bench: Bench) -> None:
    told = bench.json("/v1/embeddings", {"input": ["a"]})
    assert told["got"] == {"input": ["a"], "model": "a-model"}
    assert "CONTAINER_ID=123" in bench.said()
    assert "run(backlog=…) means nothing here" in bench.said()
    port = urlsplit(bench.facts()["worker_url"]).port
    heard = [each.laddr for each in psutil.net_connections("tcp") if each.status == "LISTEN"]
    assert [address.ip for address in heard if address.port == port] == ["127.0.0.1"]


FAKE_NLTK = """
import pathlib
HERE = pathlib.Path(__file__).parent

def download(name, quiet=False):
    (HERE / f"{name}.txt").write_text("harbour quay crane")
    return True
"""


@file(
    """
import os, random
from pathlib import Path
import nltk

nltk.download("words", quiet=True)
HERE = Path(__file__).resolve().parent
WORDS = (HERE / "words.txt").read_text().split()
with open(os.path.join(os.path.dirname(__file__), "misc", "prompts.txt")) as prompts:
    PROMPTS = [line.strip() for line in prompts]
os.path.exists(".has_benchmark") and os.remove(".has_benchmark")

def sample() -> dict:
    prompt = f"{random.choice(PROMPTS)} {random.choice(WORDS)}"
    return {"prompt": prompt, "max_tokens": 4, "nap": 1}

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT,
    model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/health", workload_calculator=lambda data: 1, max_queue_time=10.0,
                      allow_parallel_requests=True),
        HandlerConfig(route="/generate", workload_calculator=lambda data: data["max_tokens"],
                      allow_parallel_requests=True,
                      benchmark_config=BenchmarkConfig(generator=sample, runs=3, concurrency=None,
                                                       do_warmup=False))],
)
""",
    head="""
from vastai.serverless.server.worker import (
    BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig,
)
""",
    beside={"nltk.py": FAKE_NLTK, "misc/prompts.txt": "Draw\nPaint\n", ".has_benchmark": "5\n"},
)
def downloads_at_import_and_a_benchmark_at_every_start(bench: Bench) -> None:
    assert bench.json("/generate", {"max_tokens": 2})["most"] > 1, "it was measured, 10 at a time"
    assert bench.json("/health", {})["path"] == "/health"
    figure = bench.status()["load"]["max_perf"]
    assert figure > 0 and figure != 5
    kept = (bench.directory / ".has_benchmark").read_text().split()
    assert float(kept[0]) == pytest.approx(figure, abs=0.001)


@file(
    """
import asyncio, dataclasses, inspect
import vastai
from vastai.serverless.server.lib import backend, data_types, server
from vastai.serverless.server.lib.backend import Backend
from vastai.serverless.server.lib.data_types import (
    ApiPayload, AuthData, EndpointHandler, JsonDataException, LogAction, Session,
)
from vastai.serverless.server import worker as module
from vastai.serverless.server.lib.data_types import ApiPayload_T
from vastai.serverless.server.worker import (
    DEFAULT_WORKLOAD, ClientResponseGenerator, RequestPayloadParser, WorkloadCalculator,
)

same: RequestPayloadParser = lambda payload: payload
assert DEFAULT_WORKLOAD == 100.0 and ApiPayload_T.__bound__
assert module.Worker is vastai.Worker and data_types.LogAction is LogAction
assert backend.Backend is Backend
actions = vastai.LogActionConfig(["up"], ["down"], ["hm"]).log_actions
assert actions == [(LogAction.ModelLoaded, "up"), (LogAction.ModelError, "down"),
                   (LogAction.Info, "hm")]
auth = AuthData.from_json_msg(dict(cost="1", endpoint="e", reqnum=1, request_idx=2, signature="s",
                                   url="u", more="ignored"))
assert dataclasses.asdict(auth)["request_idx"] == 2
try:
    AuthData.from_json_msg({"cost": "1"})
except JsonDataException as fault:
    assert fault.message["url"] == "missing parameter"
options = {"handlers": [vastai.HandlerConfig(route="/a", allow_parallel_requests=True)]}
for name, value in {"max_sessions": 3, "of_a_later_version": 1}.items():
    if name in inspect.signature(vastai.WorkerConfig).parameters:
        options[name] = value
base = vastai.WorkerConfig("http://127.0.0.1", PORT, **options)
worker_config = dataclasses.replace(base, model_healthcheck_url="/health")
assert {field.name for field in dataclasses.fields(vastai.BenchmarkConfig)} == {
    "dataset", "generator", "runs", "concurrency", "do_warmup"}
assert not inspect.isabstract(type(vastai.Worker(worker_config).backend))
worker = vastai.Worker(worker_config)
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
loop.run_until_complete(worker.run_async())
""",
    head="",
    tail="",
)
def the_whole_package_by_its_name_and_a_loop_of_ones_own(bench: Bench) -> None:
    assert bench.json("/a", {"x": 1})["got"] == {"x": 1}


@pytest.mark.parametrize("name", SHELF)
def test_file(name: str, tmp_path: Path) -> None:
    SHELF.run(name, tmp_path)
