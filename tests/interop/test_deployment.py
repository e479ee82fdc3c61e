"""The platform's own Deployment (functions that a client calls by name) on our worker.

Its class lies in the public package; what it makes of its functions is a Worker, and that is ours.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from supervisor.exit_codes import ExitCode
from tests.compat.bench import on_the_bench

pytest.importorskip("vastai.serverless.remote.serve")

TEXT = """
from vastai import Deployment

app = Deployment(name="sums")

@app.context(3)
class Weights:
    def __init__(self, factor):
        self.factor = factor

    async def __aenter__(self):
        print("the weights are there")
        return self

    async def __aexit__(self, *error):
        print("the weights are gone")

@app.remote(benchmark_dataset=[{"x": 1}], benchmark_runs=2, allow_parallel_requests=True,
            workload_calculator=lambda x: x)
async def scaled(x: int) -> int:
    return x * app.get_context(Weights).factor

@app.remote
async def refused(x: int) -> int:
    raise KeyError("no such x")

if __name__ == "__main__":
    app.into_worker().run()
"""


def test_its_functions_are_routes(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, TEXT, model=False, IS_DEPLOYMENT="1") as bench:
        bench.until_ready()
        assert "the weights are there" in bench.said()
        assert bench.status()["load"]["max_perf"] > 0
        told = bench.json("/remote/scaled", {"args": [], "kwargs": {"x": 4}})
        assert told == {"result": {"ok": 12}}
        assert bench.until_served(1) == 4
        told = bench.json("/remote/refused", {"kwargs": {"x": 4}})
        assert told["result"]["err"]["class"] == "KeyError"
        bench.signal(signal.SIGTERM)
        assert bench.until_gone() == ExitCode.CLEAN
        assert "the weights are gone" in bench.said()
