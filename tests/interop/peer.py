"""The public PyWorker as a process: what ours is compared with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor.ports import free_port
from tests.kit.running_worker import environment
from tests.kit.wait import wait_until

TOKEN = "t0k3n-of-b0th"
PEER = 77  #: its CONTAINER_ID


@contextmanager
def the_peer(
    directory: Path, worker: Path, engine: str, python: str = sys.executable, **env: str
) -> Iterator[int]:
    """The public PyWorker with this file, run by ``python``; yields its port once it is ready."""
    port = free_port("127.0.0.1")
    environ = environment(
        CONTAINER_ID=str(PEER), REPORT_ADDR=engine, MASTER_TOKEN=TOKEN,
        WORKER_PORT=str(port), WORKER_HTTP_PORT=str(free_port("127.0.0.1", {port})),
        PUBLIC_IPADDR="127.0.0.1", **{f"VAST_TCP_PORT_{port}": str(port), **env},
    )  # fmt: skip
    directory.mkdir()
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, str(worker)], cwd=directory, env=environ, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            said = log.read_text()
            return "Model marked as loaded" in said or "succeeded - model is ready" in said

        wait_until(ready, 90, "the peer to be ready")
        yield port
    finally:
        os.killpg(process.pid, 9)
        process.wait()
