"""What user code does wrong, and what that costs: its own requests, and nobody else's."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervisor.exit_codes import ExitCode
from supervisor.ports import free_port
from tests.compat.bench import ROOT, on_the_bench, until_said
from tests.kit.wait import wait_until

HEAD = "from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig\n"
MODEL = (
    'model_server_url="http://127.0.0.1", model_server_port=PORT, model_healthcheck_url="/health",'
)
QUICK = ("--set", "restart.budget=1", "--set", "restart.first_delay_s=0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n    pass\n", "worker.py:1: "),
        (HEAD + "\nx = 1 / 0\n", "worker.py:3: ZeroDivisionError: division by zero"),
        (HEAD + "import no_such_module_here\n", "worker.py:2: ModuleNotFoundError"),
        (HEAD + "WorkerConfig(model_server_prt=1)\n", "worker.py:2: TypeError: "),
        (HEAD + "raise SystemExit('no GPU here')\n", "worker.py:2: it exited: no GPU here"),
        (HEAD + "x = 1\n", "it ended without Worker(config).run()"),
        (HEAD + "Worker(WorkerConfig(handlers=[HandlerConfig('/a')])).run()\n", "model_server_url"),
        (
            HEAD + f"Worker(WorkerConfig({MODEL} handlers=[HandlerConfig('/a'), "
            "HandlerConfig('/a')])).run()\n",
            "worker.py:2: ConfigurationError: route '/a' is configured twice",
        ),
        (
            HEAD + f"c = BenchmarkConfig(dataset=[{{}}])\nWorker(WorkerConfig({MODEL} handlers=["
            "HandlerConfig('/a', benchmark_config=c), HandlerConfig('/b', benchmark_config=c)"
            "])).run()\n",
            "a BenchmarkConfig on more than one handler",
        ),
    ],
)
def test_a_file_that_cannot_run_is_told_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    """To the person, and to the engine; and the worker stays to say it again."""
    with on_the_bench(tmp_path, text, *QUICK, model=False) as bench:
        until_said(bench, "giving up on it")
        assert said in bench.output
        reason = bench.status()["reason"]
        assert reason.startswith("hooks is failed: ") and said in reason
        assert bench.process.poll() is None
        bench.signal(signal.SIGTERM)
        assert bench.until_gone() == ExitCode.CLEAN
        assert bench.say("check", "worker.py").returncode == ExitCode.SETTINGS


def test_a_file_that_hangs_is_told_where(tmp_path: Path) -> None:
    text = HEAD + "import time\n\ntime.sleep(1000)\n"
    flags = ("--set", "hooks.start_timeout_s=3", *QUICK)
    with on_the_bench(tmp_path, text, *flags, model=False) as bench:
        until_said(bench, "worker.py:4: it has not run its Worker within 3 s")


WORKER = (
    HEAD
    + f"""
import time

def parse(payload):
    if payload.get("hang"):
        time.sleep(1000)
    return payload

async def block(client_request, model_response):
    time.sleep(3)
    from aiohttp import web
    return web.json_response({{}})

async def leave(client_request, model_response):
    raise SystemExit(1)

async def never(client_request, model_response):
    import asyncio
    await model_response.read()
    await asyncio.sleep(1000)

Worker(WorkerConfig({MODEL}
    handlers=[
        HandlerConfig("/parsed", request_parser=parse, allow_parallel_requests=True),
        HandlerConfig("/plain", allow_parallel_requests=True),
        HandlerConfig("/stream", allow_parallel_requests=True),
        HandlerConfig("/blocking", response_generator=block, allow_parallel_requests=True),
        HandlerConfig("/leave", response_generator=leave, allow_parallel_requests=True),
        HandlerConfig("/never", response_generator=never, allow_parallel_requests=True),
    ])).run()
"""
)


def aside(work: Any, *args: Any) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(work(*args)), daemon=True)
    thread.start()
    return thread, got


def test_clients_that_left_stand_in_nobodys_way(tmp_path: Path) -> None:
    """What they asked of a function that hangs is forgotten, not begun one after the other."""
    with on_the_bench(tmp_path, WORKER, "--set", "hooks.timeout_s=8") as bench:
        bench.until_ready()
        url = urlsplit(bench.facts()["worker_url"])
        body = b'{"payload": {"hang": true}}'
        head = b"POST /parsed HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
        clients = [socket.create_connection((url.hostname, url.port)) for _ in range(60)]
        for client in clients:
            client.sendall(head + body)
        wait_until(lambda: bench.member("hooks")["gauges"]["waiting"] > 5, 60, "them to wait")
        for client in clients:
            client.close()
        assert bench.json("/parsed", {"n": 1})["got"] == {"n": 1}
        wait_until(lambda: bench.member("hooks")["gauges"]["waiting"] == 0, 60, "nobody to wait")
        assert {m["restarts"] for m in bench.status()["members"]} == {0}


FUNCTIONS = (
    HEAD
    + """
import time

def slow(seconds):
    print(f"BEGAN {seconds}")
    time.sleep(seconds)
    print(f"ENDED {seconds}")
    return seconds

Worker(WorkerConfig(handlers=[
    HandlerConfig("/slow", remote_function=slow),
    HandlerConfig("/same", remote_function=slow),
])).run()
"""
)


def test_a_serial_function_never_overlaps_itself_and_does_not_hold_the_end(tmp_path: Path) -> None:
    """Its client may leave; the function goes on, and the next one waits for it."""
    with on_the_bench(
        tmp_path, FUNCTIONS, "--set", "hooks.timeout_s=6", model=False, PYTHONUNBUFFERED="1"
    ) as bench:
        bench.until_ready()
        url = urlsplit(bench.facts()["worker_url"])
        hooks = Path(bench.state_dir) / "logs" / "hooks.log"

        def leave(seconds: float) -> None:
            body = b'{"payload": {"seconds": %g}}' % seconds
            head = b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            with socket.create_connection((url.hostname, url.port)) as client:
                client.sendall(head + body)
                wait_until(
                    lambda: hooks.exists() and f"BEGAN {seconds}" in hooks.read_text(), 60, "it"
                )

        leave(1.5)
        assert bench.json("/same", {"seconds": 0.25}) == {"result": 0.25}

        def said() -> list[str]:
            lines = hooks.read_text().splitlines()
            return [line for line in lines if line[:5] in ("BEGAN", "ENDED")]

        wait_until(lambda: len(said()) >= 4, what="the log to have it all")
        assert said() == ["BEGAN 1.5", "ENDED 1.5", "BEGAN 0.25", "ENDED 0.25"]
        leave(1000)
        status, _, body = bench.ask("/same", {"seconds": 0})
        assert (status, json.loads(body)["error"]["kind"]) == (504, "hook_timeout")
        assert "have not returned within 6 s" in json.loads(body)["error"]["message"]
        bench.signal(signal.SIGTERM)
        assert bench.until_gone() == ExitCode.CLEAN


def test_the_death_of_the_hook_host_loses_no_request(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, WORKER) as bench:
        bench.until_ready()
        old = bench.member("hooks")["pid"]
        os.kill(old, signal.SIGKILL)
        asked = [aside(bench.ask, "/parsed", {"n": number}) for number in range(10)]
        for thread, got in asked:
            thread.join(60)
            assert got and got[0][0] == 200, (got, bench.output)
        assert bench.member("hooks")["pid"] != old
        wait_until(lambda: bench.status()["ready"], 60, "ready again")


def test_who_needs_a_worker_py_that_failed_for_good_is_told_at_once(tmp_path: Path) -> None:
    """Also by an ingress that was not there when it failed; and no more once it runs again."""
    with on_the_bench(tmp_path, WORKER, *QUICK) as bench:
        bench.until_ready()
        for _ in range(2):
            wait_until(lambda: bench.member("hooks")["state"] == "ready", 60, "it to run")
            asked = aside(bench.ask, "/parsed", {"hang": True})
            gone = bench.member("hooks")["pid"]
            os.kill(gone, signal.SIGKILL)
            wait_until(lambda gone=gone: bench.member("hooks")["pid"] != gone, 60, "its end")
        until_said(bench, "giving up on it")

        def refused() -> None:
            status, _, body = bench.ask("/parsed", {"n": 1})
            assert (status, json.loads(body)["error"]["kind"]) == (503, "hooks_down")

        asked[0].join(20)
        assert asked[1][0][0] == 503
        refused()
        assert bench.json("/plain", {"n": 1})["got"] == {"n": 1}
        ingress = bench.member("ingress-0")["pid"]
        os.kill(ingress, signal.SIGKILL)
        wait_until(lambda: bench.member("ingress-0")["pid"] not in (0, ingress), 60, "another one")
        wait_until(lambda: bench.member("ingress-0")["state"] == "ready", 60, "its door")
        refused()
        assert bench.say("restart", "hooks").returncode == 0
        wait_until(lambda: bench.member("hooks")["state"] == "ready", 60, "it to run")
        assert bench.json("/parsed", {"n": 2})["got"] == {"n": 2}


def test_signatures_are_checked_before_any_hook_runs(tmp_path: Path) -> None:
    text = WORKER.replace("def parse(payload):", "def parse(payload):\n    print('PARSED')")
    with on_the_bench(tmp_path, text, signatures=True) as bench:
        bench.until_ready()
        auth = {
            "signature": "bm8=", "cost": 1, "endpoint": "e", "reqnum": 1, "request_idx": 1,
            "url": bench.facts()["worker_url"],
        }  # fmt: skip
        assert bench.ask("/parsed", {"n": 1}, auth_data=auth)[0] == 401
        asked = bench.say("ask", "--route", "/parsed", "--payload", '{"n": 2}', "--no-stream")
        assert asked.returncode == 0, asked.stderr
        assert bench.output.count("PARSED") <= 1, "only for the one that was signed"


def test_code_after_run_runs_when_the_worker_ends(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, WORKER + "\nprint('cleaning', 'up')\n") as bench:
        bench.until_ready()
        log = Path(bench.state_dir) / "logs" / "hooks.log"
        assert not log.exists() or "cleaning up" not in log.read_text()
        bench.signal(signal.SIGTERM)
        assert bench.until_gone() == ExitCode.CLEAN
        assert "cleaning up" in log.read_text()


def test_what_a_hook_makes_has_a_bound_and_so_has_what_waits_for_it(tmp_path: Path) -> None:
    text = WORKER.replace(
        "def parse(payload):",
        "def parse(payload):\n    if payload.get('grow'):\n        return {'x': 'a' * 2_000_000}",
    )
    limits = ("--set", "limits.body_bytes=1000000", "--set", "limits.buffered_bytes=1000000")
    with on_the_bench(tmp_path, text, *limits, "--set", "hooks.timeout_s=5") as bench:
        bench.until_ready()
        status, _, body = bench.ask("/parsed", {"grow": True})
        assert (status, json.loads(body)["error"]["kind"]) == (500, "hook_failed")
        assert b"limits.body_bytes" in body
        hung = aside(bench.ask, "/parsed", {"hang": True, "x": "a" * 600_000})
        hooks = Path(bench.state_dir) / "logs" / "hooks.log"
        assert not hooks.exists() or "Traceback" not in hooks.read_text()
        assert bench.json("/parsed", {"n": 1})["got"] == {"n": 1}
        hung[0].join(60)
        status, _, body = hung[1][0]
        assert (status, json.loads(body)["error"]["kind"]) == (504, "hook_timeout")
        # its thread still has it: what would go beyond the bound is refused, the small is not
        status, _, body = bench.ask("/parsed", {"x": "a" * 600_000})
        assert (status, json.loads(body)["error"]["kind"]) == (503, "memory")
        assert bench.json("/parsed", {"n": 2})["got"] == {"n": 2}


def test_large_bodies_reach_every_kind_of_function(tmp_path: Path) -> None:
    text = (
        HEAD
        + f"""
async def length(client_request, model_response):
    from aiohttp import web
    sent = await client_request.read()
    got = await model_response.json()
    return web.json_response([len(sent), len(got["got"]["x"])])

def work(**params):
    return len(params["x"])

def count(payload):
    return float(len(payload["x"]))

Worker(WorkerConfig({MODEL}
    handlers=[
        HandlerConfig("/formed", request_parser=lambda p: {{**p, "more": 1}}),
        HandlerConfig("/counted", workload_calculator=count),
        HandlerConfig("/answered", response_generator=length),
        HandlerConfig("/worked", remote_function=work),
    ])).run()
"""
    )
    size = 3_000_000
    payload = {"x": "ä" * (size // 6)}  # which JSON writes in six letters each
    with on_the_bench(tmp_path, text) as bench:
        bench.until_ready()
        assert bench.json("/formed", payload)["got"] == {**payload, "more": 1}
        assert bench.json("/counted", payload)["got"] == payload
        assert bench.json("/worked", payload)["result"] == size // 6
        sent, got = bench.json("/answered", payload)
        assert (sent, got) == (len(json.dumps({"payload": payload})), size // 6)
        spool = Path(bench.state_dir) / "spool"
        assert list(spool.iterdir()), "no body was large"
        wait_until(lambda: not [path for path in spool.rglob("*") if path.is_file()])
        assert bench.until_served(4) == size // 6 + 300.0


def test_headers_that_the_door_lets_through_reach_the_function(tmp_path: Path) -> None:
    text = WORKER.replace(
        "async def leave(client_request, model_response):",
        """async def count(client_request, model_response):
    from aiohttp import web
    lines = [(name.lower(), len(value)) for name, value in client_request.headers.items()]
    return web.json_response([each for each in lines if each[0] in ("x-long", "user-agent", "x")])

async def leave(client_request, model_response):""",
    ).replace(
        'HandlerConfig("/leave", response_generator=leave',
        'HandlerConfig("/count", response_generator=count',
    )
    with on_the_bench(tmp_path, text, "--set", "limits.header_count=300") as bench:
        bench.until_ready()
        url = urlsplit(bench.facts()["worker_url"])
        body = b'{"payload": {}}'
        several = "".join(f"x: {number:03}\r\n" for number in range(250))
        for lines, told in (
            (f"x-long: {'y' * 60_000}\r\n", [["x-long", 60_000]]),
            (several, [["x", 3]] * 250),
            ("user-agent: a\r\nuser-agent: bb\r\n", [["user-agent", 1]]),
        ):
            head = f"POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
            with socket.create_connection((url.hostname, url.port), 60) as client:
                client.sendall(head.encode() + body)
                answer = http.client.HTTPResponse(client)
                answer.begin()
                assert (answer.status, json.loads(answer.read())) == (200, told)


def test_a_model_server_that_moves_with_the_restart_of_its_file_is_found(tmp_path: Path) -> None:
    text = (
        HEAD
        + f"""
import subprocess, sys
from supervisor.ports import free_port

async def form(client_request, model_response):
    from aiohttp import web
    return web.json_response(await model_response.json())

port = free_port("127.0.0.1")
subprocess.Popen([sys.executable, "-m", "tests.kit.echo_model", str(port), LOG], cwd={str(ROOT)!r})
Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=port, model_healthcheck_url="/health",
    handlers=[HandlerConfig("/plain", allow_parallel_requests=True),
              HandlerConfig("/formed", response_generator=form, allow_parallel_requests=True)],
)).run()
"""
    )
    with on_the_bench(tmp_path, text, model=False) as bench:
        bench.until_ready()
        old = bench.status()["model"]["url"]
        assert bench.json("/plain", {"n": 1})["got"] == {"n": 1}
        os.kill(bench.member("hooks")["pid"], signal.SIGKILL)
        for route in ("/formed", "/plain"):
            assert bench.json(route, {"n": 2})["got"] == {"n": 2}
        assert bench.status()["model"]["url"] != old
        wait_until(lambda: bench.status()["ready"], 60, "ready again")


def test_what_a_model_server_took_and_sent_elsewhere_counts_as_sent(tmp_path: Path) -> None:
    """Where that is nobody listens; it must not look as if the model server had not been there."""
    posts: list[str] = []
    nowhere = free_port("127.0.0.1")

    class Model(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            posts.append(self.path)
            self._answer(307)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("location", f"http://127.0.0.1:{nowhere}/")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever).start()
    text = (
        HEAD
        + f"""
async def form(client_request, model_response):
    from aiohttp import web
    return web.json_response({{}})

Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port={server.server_port},
    model_healthcheck_url="/health",
    handlers=[HandlerConfig("/formed", response_generator=form, allow_parallel_requests=True)],
)).run()
"""
    )
    try:
        with on_the_bench(tmp_path, text, model=False) as bench:
            bench.until_ready()
            status, _, body = bench.ask("/formed", {"n": 1})
            assert (status, json.loads(body)["error"]["kind"]) == (502, "model_failed"), body
            assert posts == ["/formed"] * 2
    finally:
        server.shutdown()
        server.server_close()


def test_a_lifecycle_is_waited_for_again_when_its_file_is_restarted(tmp_path: Path) -> None:
    """The model server's port may answer long before that."""
    text = (
        HEAD
        + f"""
import asyncio, os
from contextlib import asynccontextmanager

@asynccontextmanager
async def life():
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    yield

Worker(WorkerConfig({MODEL} handlers=[HandlerConfig("/plain")], lifecycle=life)).run()
"""
    )
    go = tmp_path / "go"
    go.touch()
    with on_the_bench(tmp_path, text) as bench:
        bench.until_ready()
        go.unlink()
        old = bench.member("hooks")["pid"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: bench.member("hooks")["pid"] not in (0, old), 60, "another one")
        wait_until(lambda: bench.member("hooks")["state"] == "ready", 60, "it to run")
        asked = aside(bench.ask, "/plain", {"n": 1})
        wait_until(lambda: bench.status()["queue"]["waiting"] == 1, 60, "the request to wait")
        assert not bench.status()["ready"] and not bench.status()["model"]["ready"]
        go.touch()
        asked[0].join(60)
        assert asked[1][0][0] == 200
        wait_until(lambda: bench.status()["ready"], 60, "ready again")
