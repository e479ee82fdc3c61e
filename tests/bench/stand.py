"""What is measured side by side, started and stopped together: nginx as a model server that answers
at once, the demo model, which streams; nginx as a proxy, the worker, and the public PyWorker in
front of either. The last two run in environments of their own (``environments.py``).
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from supervisor.ports import free_port
from tests.bench.environments import peer_python, worker_python
from tests.interop.peer import the_peer
from tests.kit.recording_engine import RecordingEngine
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, running

ROUTE = "/v1/completions"
#: answers of a thousand lengths
VARIED = "/varied"
#: begins an event stream that says nothing more
ENDLESS = "/endless"
PAYLOAD = {"prompt": "hello world, how are you", "max_tokens": 64}
ANSWER = '{"id":"cmpl-1","choices":[{"text":"hello world","index":0}]}'

_NGINX = """
worker_processes 1; daemon off; pid %(dir)s/nginx.pid; error_log stderr crit;
events { worker_connections 16384; }
http {
  access_log off; keepalive_requests 100000000; client_max_body_size 0;
  client_body_temp_path %(dir)s/body; proxy_temp_path %(dir)s/proxy;
  fastcgi_temp_path %(dir)s/f; uwsgi_temp_path %(dir)s/u; scgi_temp_path %(dir)s/s;
  default_type application/json;
  %(more)s
}
"""
_MODEL = """
  split_clients "a$request_id" $units { %(units)s }
  split_clients "b$request_id" $tens { %(tens)s }
  split_clients "c$request_id" $hundreds { %(hundreds)s }
  server {
    listen 127.0.0.1:%(port)d backlog=8192; root %(dir)s;
    location /health { return 200 ok; }
    location /files/ { error_page 405 =200 $uri; }
    location %(endless)s {
      proxy_pass http://127.0.0.1:%(streams)d; proxy_http_version 1.1; proxy_buffering off;
      proxy_read_timeout 1h;
    }
    location %(varied)s { return 200 '{"more":"$hundreds$tens$units","answer":%(answer)s}'; }
    location / { return 200 '%(answer)s'; }
  }
"""
#: Ten texts, one more letter each, or ten, or a hundred; as nginx draws one of them.
_LENGTHS = {
    name: " ".join(f"10% '{'x' * (step * n)}';" for n in range(9)) + f" * '{'x' * (step * 9)}';"
    for name, step in (("units", 1), ("tens", 10), ("hundreds", 100))
}
_PROXY = """
  upstream model { server 127.0.0.1:%(model)d; keepalive 1024; }
  server {
    listen 127.0.0.1:%(port)d backlog=8192;
    location / { proxy_pass http://model; proxy_http_version 1.1; proxy_buffering %(buffering)s;
      proxy_set_header Connection ""; }
  }
  server {
    listen 127.0.0.1:%(plain)d backlog=8192;
    location / { proxy_pass http://127.0.0.1:%(model)d; }
  }
"""
_PEER = """
import logging

from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig

def handler(route, **more):
    return HandlerConfig(
        route, allow_parallel_requests=True, max_queue_time=None,
        workload_calculator=lambda payload: payload.get("max_tokens", 10), **more)

worker = Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=%(model)d, model_log_file="%(log)s",
    model_healthcheck_url="/health",
    handlers=[
        handler("/v1/completions",
                benchmark_config=BenchmarkConfig(dataset=[{"max_tokens": 2}], runs=1)),
        handler("/varied"),
        *(handler(f"/files/{size}") for size in (1_000, 1_000_000, 10_000_000)),
    ],
    log_action_config=LogActionConfig(on_load=["READY"]),
))


class UntilReady(logging.Handler):
    def emit(self, record):
        if record.getMessage() == "First healthcheck succeeded - model is ready":
            logging.getLogger().removeHandler(self)
            logging.getLogger().setLevel(logging.WARNING)


if %(quiet)s:
    logging.getLogger().addHandler(UntilReady())
worker.run()
"""
_ROUTES = "".join(
    f'[[route]]\npath = "{path}"\nworkload = {{ field = "max_tokens", default = 10 }}\n'
    "max_queue_time_s = inf\n"
    for path in (
        ROUTE,
        VARIED,
        ENDLESS,
        *(f"/files/{size}" for size in (1_000, 1_000_000, 10_000_000)),
    )
)
#: Who runs beside the worker.
Others = Literal["none", "tuned", "as they come, too"]
#: takes one request at a time, and lets the others wait
_HELD = """
[[route]]
path = "/held"
upstream = "/v1/completions"
concurrency = 1
max_queue_time_s = inf
"""


@dataclass
class Stand:
    """Those that run."""

    worker: Worker
    #: where each is asked, and what it asks for besides the payload
    urls: dict[str, str] = field(default_factory=dict)
    #: those as they come: nginx where nobody has said anything but ``proxy_pass``, which makes a
    #: connection for each request, and PyWorker at its log level, which is DEBUG
    plain: dict[str, str] = field(default_factory=dict)
    auths: dict[str, dict[str, Any]] = field(default_factory=dict)

    def body(self, name: str, payload: dict[str, Any]) -> bytes:
        """A request for ``name``; the same bytes, but for signatures, for all."""
        return json.dumps({"auth_data": self.auths[name], "payload": payload}).encode()

    def processes(self) -> dict[str, int]:
        """The worker's own processes, by name: pid."""
        members = self.worker.members().items()
        ours = ("ingress-", "backend_adapter", "reporter")
        found = {name: int(member["pid"]) for name, member in members if name.startswith(ours)}
        return {"supervisor": self.worker.process.pid, **found}


def cpu_s(stand: Stand) -> dict[str, float]:
    """Seconds of CPU that the worker's processes have used, by kind."""
    found: dict[str, float] = {}
    for name, pid in stand.processes().items():
        kind, times = name.split("-")[0], psutil.Process(pid).cpu_times()
        found[kind] = found.get(kind, 0.0) + times.user + times.system
    return found


def turns(names: Iterable[str], round_: int) -> list[str]:
    """The order of this round: drawn, so that none always follows the same one, and the same in
    every run.
    """
    order = list(names)
    random.Random(round_).shuffle(order)
    return order


def _worker(
    directory: Path, settings: tuple[str, ...], **options: Any
) -> AbstractContextManager[Worker]:
    return running(
        directory, routes=_ROUTES + _HELD, settings=settings, python=worker_python(), **options
    )


@contextmanager
def static(
    directory: Path,
    files: tuple[int, ...] = (),
    settings: tuple[str, ...] = (),
    others: Others = "none",
) -> Iterator[Stand]:
    """In front of nginx, which answers at once."""
    directory.chmod(0o711)  # nginx writes its own spool as another user
    port = free_port("127.0.0.1")
    (directory / "files").mkdir()
    for size in files:
        (directory / "files" / str(size)).write_bytes(bytes(size))
    toml = f'[model]\nurl = "http://127.0.0.1:{port}"\nhealth = "/health"\n'
    with _endless() as streams:
        model = {
            "port": port, "dir": directory, "answer": ANSWER, "endless": ENDLESS,
            "streams": streams, "varied": VARIED, **_LENGTHS,
        }  # fmt: skip
        with (
            _nginx(directory / "model", _MODEL % model),
            _worker(directory, settings, toml=toml) as worker,
            _beside(worker, port, others, "on") as stand,
        ):
            yield stand


@contextmanager
def streaming(
    directory: Path,
    tokens_per_s: float = 0.0,
    settings: tuple[str, ...] = (),
    others: Others = "none",
) -> Iterator[Stand]:
    """In front of the demo model, which streams as fast as it can, or at this pace."""
    pace = ("--tokens-per-second", str(tokens_per_s)) if tokens_per_s else ()
    flags = ("--slots", "20000", *pace)
    with (
        _worker(directory, settings, model_flags=flags) as worker,
        _beside(worker, worker.model_port, others, "off") as stand,
    ):
        yield stand


def settle(stand: Stand) -> None:
    """Wait until the demo model runs nothing."""
    url = f"http://127.0.0.1:{stand.worker.model_port}/demo/stats"
    wait_until(lambda: get_json(url)["running"] == 0, 60.0, "the model to run nothing")


@contextmanager
def _beside(worker: Worker, model: int, others: Others, buffering: str) -> Iterator[Stand]:
    """The others, in front of the same model server."""
    directory, proxy, plain = worker.directory, free_port("127.0.0.1"), free_port("127.0.0.1")
    stand = Stand(worker, {"straight": f"http://127.0.0.1:{model}", "worker": worker.url})
    stand.auths = dict.fromkeys(stand.urls, worker.auth())
    with ExitStack() as stack:
        if others == "none":
            yield stand
            return
        ports = {"port": proxy, "plain": plain, "model": model, "buffering": buffering}
        stack.enter_context(_nginx(directory / "proxy", _PROXY % ports))
        stand.urls["nginx"] = f"http://127.0.0.1:{proxy}"
        if others == "as they come, too":
            stand.plain["nginx"] = f"http://127.0.0.1:{plain}"
        for name in ("nginx", *stand.plain.values()):
            stand.auths[name] = stand.auths["worker"]
        if python := peer_python():
            engine = stack.enter_context(RecordingEngine())
            for name in ["peer", "plain"] if stand.plain else ["peer"]:
                url = stack.enter_context(_peer(directory, name, python, engine, model))
                known = stand.urls if name == "peer" else stand.plain
                known["pyworker"] = url
                stand.auths["pyworker" if name == "peer" else url] = engine.auth(url, 1)
        yield stand


@contextmanager
def _peer(
    directory: Path, name: str, python: str, engine: RecordingEngine, model: int
) -> Iterator[str]:
    """The URL of a PyWorker, ``peer`` or ``plain``."""
    log, script = directory / "model.log", directory / f"{name}.py"
    log.write_text("READY\n")
    script.write_text(_PEER % {"model": model, "log": log, "quiet": name == "peer"})
    with the_peer(directory / name, script, engine.url, python) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _endless() -> Iterator[int]:
    """The port of a server whose event streams begin, and go on until they are closed."""

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        while await reader.read(65_536):
            pass
        writer.close()

    port, loop = free_port("127.0.0.1"), asyncio.new_event_loop()
    loop.run_until_complete(asyncio.start_server(begin, "127.0.0.1", port, backlog=8192))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def _nginx(directory: Path, more: str) -> Iterator[None]:
    program = shutil.which("nginx")
    if program is None:
        raise SystemExit("needs nginx: install the distribution's package")
    directory.mkdir()
    directory.chmod(0o711)
    conf = directory / "nginx.conf"
    conf.write_text(_NGINX % {"dir": directory, "more": more})
    with subprocess.Popen([program, "-c", str(conf)]) as process:
        try:
            wait_until((directory / "nginx.pid").exists, what="nginx to start")
            yield
        finally:
            process.terminate()
