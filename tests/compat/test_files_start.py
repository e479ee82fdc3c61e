"""What files do before and around their Worker: servers, logs, arguments, downloads, threads."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from supervisor.exit_codes import ExitCode
from supervisor.ports import is_free
from tests.compat.bench import Bench
from tests.compat.shelf import ROOT, Shelf
from tests.kit.wait import wait_until
from tests.kit.worker import get_json

SHELF = Shelf()
file = SHELF.file


@file(
    f"""
import atexit, os, signal, subprocess, sys

log_path = "server.log"
open(log_path, "w").close()  # what an earlier start has left would match
server = subprocess.Popen(
    [sys.executable, "-m", "tests.kit.echo_model", "PORT", os.path.abspath(log_path)], cwd={ROOT})
atexit.register(server.terminate)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file="server.log",
    handlers=[HandlerConfig(
        route="/generate", allow_parallel_requests=False, max_queue_time=600.0,
        workload_calculator=lambda p: float(len(p.get("text", ""))),
        benchmark_config=BenchmarkConfig(generator=lambda: {{"text": "Hello."}}, runs=2,
                                         concurrency=1))],
    log_action_config=LogActionConfig(on_load=["READY to serve"], on_error=["Traceback"]),
)
""",
    model=False,
    beside={"server.log": "of yesterday: READY to serve\n"},
)
def a_server_that_the_file_starts_after_truncating_its_log(bench: Bench) -> None:
    assert bench.json("/generate", {"text": "abc"})["got"] == {"text": "abc"}
    assert "yesterday" not in (bench.directory / "server.log").read_text()
    bench.signal(signal.SIGTERM)
    assert bench.until_gone() == ExitCode.CLEAN
    assert is_free("127.0.0.1", bench.model_port), "its server has gone with it"


SPEAKER = """
import http.server, json, sys

class Speaker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        print("got", len(body), flush=True)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"spoken": json.loads(body)}).encode())

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Speaker)
print("loading the voice", flush=True)
print("the voice has loaded", flush=True)
server.serve_forever()
"""


@file(
    """
import logging, subprocess, sys, threading
logging.basicConfig(level=logging.INFO, format="[file] %(levelname)s %(message)s")
logger = logging.getLogger("starter")

def start():
    return subprocess.Popen([sys.executable, "-u", "speaker.py"], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)

def until_loaded(process, marker="has loaded"):
    for line in iter(process.stdout.readline, b""):
        if marker in line.decode(errors="replace"):
            logger.info("the speaker is there")
            return
    raise RuntimeError("the speaker has ended")

def keep_reading(process, path):
    with open(path, "ab", buffering=0) as out:
        for line in process.stdout:
            out.write(line)

def main():
    process = start()
    until_loaded(process)
    with open(LOG, "w") as log:
        log.write("speaker: up\\n")
    threading.Thread(target=keep_reading, args=(process, LOG), daemon=True).start()

    from vastai import Worker, WorkerConfig, HandlerConfig, LogActionConfig
    config = WorkerConfig(
        model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file=LOG,
        handlers=[HandlerConfig(route="/tts", workload_calculator=lambda p: len(p["text"]))],
        log_action_config=LogActionConfig(on_load="speaker: up"),
    )
    try:
        Worker(config=config).run()
    except KeyboardInterrupt:
        logger.info("stopped by hand")
    finally:
        process.terminate()
        process.wait()
    return 0

if __name__ == "__main__":
    sys.exit(main())
""",
    head="",
    tail="",
    model=False,
    beside={"speaker.py": SPEAKER},
)
def a_main_function_that_waits_for_what_its_server_prints(bench: Bench) -> None:
    assert bench.json("/tts", {"text": "hi"}) == {"spoken": {"text": "hi"}}
    log = Path(bench.directory / "model.log")
    wait_until(lambda: "got 14" in log.read_text(), 30, "the thread to copy what it prints")
    assert "the speaker is there" in bench.said()


@file("""
import http.server, threading
from dataclasses import dataclass

@dataclass(frozen=True)
class Server:
    host: str = "http://127.0.0.1"
    port: int = PORT

class Pulse(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/pulse?deep=1" else 500)
        self.end_headers()

    def log_message(self, *args):
        pass

pulse = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pulse)
threading.Thread(target=pulse.serve_forever, daemon=True).start()
asked = {"count": 0}

def counted(payload):
    asked["count"] += 1
    return asked["count"]

server = Server()
worker_config = WorkerConfig(
    model_server_url=server.host, model_server_port=server.port,
    model_healthcheck_url=f"http://127.0.0.1:{pulse.server_address[1]}/pulse?deep=1",
    handlers=[HandlerConfig("/generate", None, True, 60.0, workload_calculator=counted)],
)
""")
def a_health_url_on_another_port_that_a_thread_serves(bench: Bench) -> None:
    for _ in range(3):
        assert bench.json("/generate", {"a": 1})["got"] == {"a": 1}
    assert bench.until_served(3) == 1 + 2 + 3


@file(
    r"""
import json, os, time
READY = '"message":"Connected","target":"text_generation_router'
line = {"timestamp": "2026-01-01", "level": "INFO", "message": "Connected",
        "target": "text_generation_router::server"}
with open(os.environ["MODEL_LOG"], "a") as log:
    log.write(json.dumps(line, separators=(",", ":")) + "\n")

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT,
    model_log_file=os.environ["MODEL_LOG"], model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(route="/generate", max_queue_time=30.0,
                      workload_calculator=lambda p: p["parameters"]["max_new_tokens"]),
        HandlerConfig(route="/stream", allow_parallel_requests=True),
    ],
    log_action_config=LogActionConfig(
        on_load=[READY], on_error=["Error: WebserverFailed", "Error: ShardCannotStart"],
        on_info=['"message":"Download']),
)
""",
    MODEL_LOG="tgi.log",
)
def a_log_of_json_lines(bench: Bench) -> None:
    payload = {"inputs": "a", "parameters": {"max_new_tokens": 7}}
    assert bench.json("/generate", payload)["got"] == payload
    assert bench.ask("/stream", {})[2] == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"

    def error() -> str:
        return str(get_json(f"{engine}/demo/record")["status"][-1]["error_msg"])

    engine = bench.facts()["engine_url"]
    with (bench.directory / "tgi.log").open("a") as log:
        log.write('{"level":"ERROR","message":"Error: ShardCannotStart"}\n')
        log.flush()
        wait_until(lambda: "ShardCannotStart" in error(), 30, "the engine to hear of it")
        log.write('{"message":"Connected","target":"text_generation_router::server"}\n')
        log.flush()
        wait_until(lambda: error() == "", 30, "a ready line to end it")


@file(
    """
import asyncio
from aiohttp import web

class Model:
    def __init__(self):
        self.weights = None

    async def __aenter__(self):
        self.weights = await asyncio.to_thread(self.load)
        app = web.Application()
        app.router.add_post("/infer", self.infer)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", PORT).start()
        self.pulse = asyncio.create_task(asyncio.sleep(3600))
        return self

    async def __aexit__(self, *error):
        self.pulse.cancel()
        await self.runner.cleanup()
        print("the model has left")

    def load(self):
        return {"w": 3}

    async def infer(self, request):
        payload = await request.json()
        return web.json_response({"product": payload["x"] * self.weights["w"]})

worker_config = WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, lifecycle=Model(),
    handlers=[HandlerConfig(
        route="/infer", allow_parallel_requests=True,
        benchmark_config=BenchmarkConfig(dataset=[{"x": 1}, {"x": 2}], runs=2, concurrency=3))],
)
""",
    model=False,
)
def a_model_inside_the_lifecycle(bench: Bench) -> None:
    assert bench.json("/infer", {"x": 5}) == {"product": 15}
    assert bench.status()["load"]["max_perf"] > 0
    bench.signal(signal.SIGTERM)
    assert bench.until_gone() == ExitCode.CLEAN
    assert "the model has left" in bench.said()


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
    return {"prompt": f"{random.choice(PROMPTS)} {random.choice(WORDS)}", "max_tokens": 4}

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
    assert float(kept[0]) == pytest.approx(figure)


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
