"""The search for planted secrets, at whole workers that tell one in a form that nobody masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compat.bench import on_the_bench
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end

SCRIPT = """
import base64, os
from vastai import HandlerConfig, Worker, WorkerConfig

print("it is", base64.b64encode(os.environ["HF_TOKEN"].encode()).decode(), flush=True)
Worker(WorkerConfig("http://127.0.0.1", PORT, handlers=[HandlerConfig("/a")])).run()
"""


def test_a_model_server_that_tells_one_fails_its_test(tmp_path: Path) -> None:
    tell = 'echo "plain $HF_TOKEN"; printf %s "$HF_TOKEN" | base64 -w 0; echo; exec sleep 60'
    toml = f'[model]\ncommand = {json.dumps(["sh", "-c", tell])}\nurl = "http://127.0.0.1:9"\n'
    worker = Worker(tmp_path, toml=toml).start()
    log = worker.state_dir / "logs" / "model.log"
    try:
        wait_until(lambda: log.exists() and log.read_text().count("\n") >= 2, what="its lines")
        worker.facts()
    finally:
        with pytest.raises(AssertionError, match=r"came out:\n\S*/model\.log: .*plain \*\*\*"):
            end(worker)
    assert worker.process.poll() is not None


def test_a_worker_py_that_tells_one_fails_its_test(tmp_path: Path) -> None:
    def scene() -> None:
        with on_the_bench(tmp_path, SCRIPT) as bench:
            wait_until(lambda: "it is" in bench.said(), what="its line")
            bench.facts()

    with pytest.raises(AssertionError, match=r"came out:\n\S*/(hooks\.log|output): .*it is"):
        scene()
