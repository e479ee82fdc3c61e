"""The worker beside the model server alone, and beside nginx as a plain proxy, in one run.

    python -m tests.bench.side_by_side [seconds]

Unary: wrk against a static answer of nginx: straight, through nginx `proxy_pass`, through the
worker with signatures on; interleaved, three rounds, medians. Streams: 100 event streams of 200
tokens from the demo model, straight and through the worker. Needs `wrk` and `nginx` (the
distribution's packages). Prints one JSON object; the ratios are what counts.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from supervisor.ports import free_port
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, running

CONNECTIONS = (1, 32, 128)
ROUNDS = 3
STREAMS = 100
TOKENS = 200
NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  upstream model {{ server 127.0.0.1:{straight}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{straight};
    location /health {{ return 200 ok; }}
    location / {{ default_type application/json;
      return 200 '{{"id":"cmpl-1","choices":[{{"text":"hello world","index":0}}]}}'; }}
  }}
  server {{
    listen 127.0.0.1:{proxy};
    location / {{ proxy_pass http://model; proxy_http_version 1.1;
      proxy_set_header Connection ""; }}
  }}
}}
"""
PAYLOAD = {"model": "m", "prompt": "hello world, how are you", "max_tokens": 64}


def wrk(url: str, script: Path, connections: int, seconds: int) -> tuple[float, float]:
    """Requests per second and median latency in milliseconds."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(script), "--latency", url]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in printed:
        raise SystemExit(f"{url} answered errors:\n{printed}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", printed)[1])  # type: ignore[index]
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", printed).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def unary(directory: Path, seconds: int) -> dict[str, Any]:
    """The table of requests per second."""
    straight, proxy = free_port("127.0.0.1"), free_port("127.0.0.1")
    conf = directory / "nginx.conf"
    conf.write_text(NGINX.format(dir=directory, straight=straight, proxy=proxy))
    toml = f'[model]\nurl = "http://127.0.0.1:{straight}"\nhealth = "/health"\n'
    with ExitStack() as stack:
        nginx = stack.enter_context(subprocess.Popen(["nginx", "-c", str(conf)]))
        stack.callback(nginx.terminate)
        worker = stack.enter_context(running(directory, toml=toml))
        body = json.dumps({"auth_data": worker.auth(), "payload": PAYLOAD})
        script = directory / "post.lua"
        script.write_text(
            'wrk.method="POST"\nwrk.headers["Content-Type"]="application/json"\n'
            f"wrk.body={json.dumps(body)}\n"
        )
        urls = {
            "straight": f"http://127.0.0.1:{straight}/v1/completions",
            "nginx": f"http://127.0.0.1:{proxy}/v1/completions",
            "worker": f"{worker.url}/v1/completions",
        }
        for url in urls.values():
            wrk(url, script, 32, 1)
        table: dict[str, Any] = {}
        for connections in CONNECTIONS:
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
            for _ in range(ROUNDS):
                for name, url in urls.items():
                    runs[name].append(wrk(url, script, connections, seconds))
            rates = {n: statistics.median(r for r, _ in some) for n, some in runs.items()}
            delays = {n: statistics.median(d for _, d in some) for n, some in runs.items()}
            table[f"{connections} connections"] = {
                "rps": {name: round(rate) for name, rate in rates.items()},
                "p50_ms": {name: round(delay, 3) for name, delay in delays.items()},
                "worker/nginx": round(rates["worker"] / rates["nginx"], 3),
                "worker/straight": round(rates["worker"] / rates["straight"], 3),
            }
        return table


async def stream(url: str, body: bytes) -> tuple[float, int]:
    """One event stream: seconds to its first token, tokens."""
    address = urlsplit(url)
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {address.path} HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    first, tokens, data = 0.0, 0, b""
    try:
        while b"[DONE]" not in data[-64:]:
            part = await reader.read(65_536)
            if not part:
                raise SystemExit(f"a stream of {url} broke: {data[-200:]!r}")
            first = first or (b"data:" in part and time.monotonic() - began) or 0.0
            tokens += part.count(b"data:")
            data = data[-64:] + part
    finally:
        writer.close()
    return first, tokens


async def streams(url: str, body: bytes) -> dict[str, float]:
    """All of them at once."""
    began = time.monotonic()
    ended = await asyncio.gather(*(stream(url, body) for _ in range(STREAMS)))
    took = time.monotonic() - began
    return {
        "tokens_per_s": round(sum(tokens for _, tokens in ended) / took),
        "first_token_p50_ms": round(statistics.median(first for first, _ in ended) * 1e3, 1),
        "took_s": round(took, 2),
    }


def streaming(directory: Path, model_flags: tuple[str, ...]) -> dict[str, Any]:
    """Straight and through the worker, in turn."""
    with running(directory, model_flags=("--slots", "1000", *model_flags)) as worker:
        payload = {"prompt": "x", "max_tokens": TOKENS, "stream": True}
        bodies = {
            f"http://127.0.0.1:{worker.model_port}": payload,
            worker.url: {"auth_data": worker.auth(), "payload": payload},
        }
        found: dict[str, list[dict[str, float]]] = {url: [] for url in bodies}
        for _ in range(ROUNDS):
            for url, body in bodies.items():
                raw = json.dumps(body).encode()
                found[url].append(uvloop.run(streams(f"{url}/v1/completions", raw)))
                settle(worker)
        straight, through = (
            {key: statistics.median(one[key] for one in some) for key in some[0]}
            for some in found.values()
        )
        ratio = through["tokens_per_s"] / straight["tokens_per_s"]
        return {"straight": straight, "worker": through, "worker/straight": round(ratio, 3)}


def settle(worker: Worker) -> None:
    """Wait until the model runs nothing."""
    url = f"http://127.0.0.1:{worker.model_port}/demo/stats"
    wait_until(lambda: get_json(url)["running"] == 0)


def main(seconds: int) -> None:
    """Print the whole comparison."""
    missing = [name for name in ("wrk", "nginx") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"needs {' and '.join(missing)}: install the distribution's package")
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        one, two, three = (
            Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3)
        )
        figures["unary"] = unary(one, seconds)
        figures["100 streams, as fast as the model can"] = streaming(two, ())
        figures["100 streams at 50 tokens/s"] = streaming(three, ("--tokens-per-second", "50"))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
