"""Request bodies of 10 MB: straight to the model server, through nginx, through the worker.

    python -m tests.bench.large_bodies [megabytes] [rounds]

One connection, one request after the other; the three take turns within one run, and the medians
are compared. The model server is nginx, which reads a body and drops it. Prints one JSON object.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from supervisor.ports import free_port
from tests.bench.side_by_side import NGINX
from tests.kit.worker import running


def post(port: int, connections: dict[int, http.client.HTTPConnection], body: bytes) -> float:
    """Seconds of one request on a kept connection."""
    began = time.perf_counter()
    connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port))
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    read = answer.read()
    if answer.status != 200:
        raise SystemExit(f"port {port} answered {answer.status}: {read[:200]!r}")
    return time.perf_counter() - began


def main(megabytes: int, rounds: int) -> None:
    """Print the comparison."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o711)  # nginx writes its own spool as another user
        straight, proxy = free_port("127.0.0.1"), free_port("127.0.0.1")
        conf = directory / "nginx.conf"
        text = NGINX.format(dir=directory, straight=straight, proxy=proxy)
        # a static answer would drop the connection with the body unread
        text = text.replace("access_log off;", "access_log off; client_max_body_size 0;")
        conf.write_text(text)
        nginx = stack.enter_context(subprocess.Popen(["nginx", "-c", str(conf)]))
        stack.callback(nginx.terminate)
        toml = f'[model]\nurl = "http://127.0.0.1:{straight}"\nhealth = "/health"\n'
        worker = stack.enter_context(running(directory, toml=toml))
        payload = {"prompt": "x" * (megabytes * 1_000_000), "max_tokens": 4}
        body = json.dumps({"auth_data": worker.auth(), "payload": payload}).encode()
        through = int(worker.url.rpartition(":")[2])
        ports = {"straight": straight, "nginx": proxy, "worker": through}
        connections: dict[int, http.client.HTTPConnection] = {}
        took: dict[str, list[float]] = {name: [] for name in ports}
        for turn in range(rounds + 2):
            for name, port in ports.items():
                seconds = post(port, connections, body)
                if turn >= 2:
                    took[name].append(seconds)
        medians = {name: statistics.median(some) for name, some in took.items()}
        figures: dict[str, Any] = {
            "megabytes": megabytes,
            "median_ms": {name: round(each * 1e3, 1) for name, each in medians.items()},
            "best_ms": {name: round(min(some) * 1e3, 1) for name, some in took.items()},
            "nginx/worker": round(medians["nginx"] / medians["worker"], 2),
        }
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]), *(10, 20)[len(sys.argv) - 1 :])
