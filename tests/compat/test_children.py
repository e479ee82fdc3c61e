"""Processes that a worker.py starts with multiprocessing: they import the file, not the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.bench import on_the_bench
from tests.kit.wait import wait_until

#: Run by every interpreter that starts: the real package is not there.
NOT_INSTALLED = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in ("vastai", "vastai_sdk") else found(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""
CHILDREN = """
import multiprocessing
from vastai import Worker, WorkerConfig, HandlerConfig
from vastai.serverless.server.lib.data_types import ApiPayload
from vastai_sdk import Worker as Same

def square(queue, n):
    assert Same is Worker and Worker.__module__ == "ingress.hooks.worker"
    queue.put((n * n, __name__))

def ask_child(n, method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=square, args=(queue, n))
    child.start()
    child.join(50)
    return [*queue.get(timeout=1), child.exitcode] if child.exitcode == 0 else child.exitcode

def run():
    Worker(WorkerConfig(handlers=[HandlerConfig("/square", remote_function=ask_child)])).run()
"""
GUARDED = CHILDREN + "if __name__ == '__main__':\n    run()\n"


@pytest.mark.parametrize("installed", [True, False])
def test_children_of_multiprocessing_know_the_names(installed: bool, tmp_path: Path) -> None:
    files = {} if installed else {"hidden/sitecustomize.py": NOT_INSTALLED}
    hidden = str(tmp_path / "hidden")
    with on_the_bench(tmp_path, GUARDED, files=files, model=False, PYTHONPATH=hidden) as bench:
        bench.until_ready()
        for method in ("spawn", "forkserver"):
            told = bench.json("/square", {"n": 7, "method": method})
            assert told == {"result": [49, "__mp_main__", 0]}, bench.output


def test_a_child_runs_no_second_worker(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, CHILDREN + "run()\n", model=False) as bench:
        bench.until_ready()
        assert bench.json("/square", {"n": 7, "method": "spawn"}) == {"result": 1}
        hooks = Path(bench.state_dir) / "logs" / "hooks.log"
        text = "put what only the parent shall do under  if __name__ == '__main__':"
        wait_until(lambda: text in hooks.read_text(), 60, "the child's own words")


def test_a_child_of_a_directory_of_2024_imports_its_neighbours(tmp_path: Path) -> None:
    text = GUARDED.replace("import multi", "from .near import NEAR\nimport multi")
    text = text.replace("n * n", "n * NEAR")
    files = {"workers/x/server.py": text, "workers/x/near.py": "NEAR = 3\n"}
    script = "workers/x/server.py"
    with on_the_bench(tmp_path, "", files=files, script=script, model=False) as bench:
        bench.until_ready()
        told = bench.json("/square", {"n": 7, "method": "spawn"})
        assert told == {"result": [21, "__mp_main__", 0]}, bench.output
