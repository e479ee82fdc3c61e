"""Files that start or watch their model server themselves: processes, threads, logs, lifecycles."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

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
""".replace("ROOT", ROOT),
    model=False,
)
def a_lifecycle_that_starts_the_model_server(bench: Bench) -> None:
    assert bench.json("/generate", {"a": 1})["got"] == {"a": 1}


made = SHELF["a_lifecycle_that_starts_the_model_server"]
SHELF["a_lifecycle_factory"] = replace(
    made, text=made.text.replace("lifecycle=life()", "lifecycle=life")
)


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


@pytest.mark.parametrize("name", SHELF)
def test_file(name: str, tmp_path: Path) -> None:
    SHELF.run(name, tmp_path)
