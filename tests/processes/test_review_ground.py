"""What the supervisor's side once got wrong, each in front of a worker that really runs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from supervisor import process_tree
from supervisor.settings_sources import RUN_VARIABLE
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, post_json, running


def test_a_verdict_does_not_outlive_the_adapter_that_gave_it(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        worker.kill("backend_adapter", signal.SIGSTOP)
        wait_until(lambda: worker.members()["backend_adapter"]["state"] != "ready", what="a kill")
        status = worker.status()
        assert not status["model"]["ready"] or status["ready"]  # or it is back already
        wait_until(lambda: worker.status()["ready"], what="ready again")


def test_the_engine_sends_nobody_to_a_worker_that_drains(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> str:
        def routed() -> bool:
            body = {"endpoint": "demo", "api_key": "k", "cost": 1.0, "request_idx": 0}
            return "signature" in post_json(f"{worker.engine}/route/", body)

        def running() -> bool:
            return bool(worker.status()["queue"].get("running"))

        async with Load(worker.url, auth) as load:
            task = load.start("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 200}})
            await asyncio.to_thread(wait_until, running, 60.0, "the request to run")
            assert await asyncio.to_thread(routed)
            worker.process.terminate()
            await asyncio.to_thread(wait_until, lambda: not routed(), 60.0, "no more routes")
            assert not task.done()
            return (await task).kind

    pace = ("--tokens-per-second", "20")
    with running(tmp_path, model_flags=pace) as worker:
        assert asyncio.run(scene(worker, worker.auth())) == "ok"
        assert worker.process.wait(60) == 0


def test_a_child_of_ours_lives_before_the_model_server_does(tmp_path: Path) -> None:
    """Were the supervisor killed between two spawns, somebody has to end the model server."""
    with running(tmp_path) as worker:
        members = worker.members()
        first = max(members.values(), key=lambda member: float(member["uptime_s"]))
        assert first["name"] == "backend_adapter"


_ORPHAN = """
import sys
from supervisor.child import end_run
from supervisor.settings import Settings
from supervisor.settings_sources import Handoff
end_run(Handoff(sys.argv[1], sys.argv[2], 0, Settings()))
"""


def test_children_of_a_killed_supervisor_do_not_kill_each_other_before_the_rest(
    tmp_path: Path,
) -> None:
    """Only one of them sweeps: two that kill each other at once leave the model server alive."""
    run_id = f"orphans-{os.getpid()}"
    directory = tmp_path / "runtime"
    directory.mkdir()
    environ = {**os.environ, RUN_VARIABLE: run_id}
    sweeper = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys\n"
         "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
         "print('has it', flush=True)\nsys.stdin.read()", str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert sweeper.stdout is not None and sweeper.stdin is not None
    sweeper.stdout.readline()
    model = subprocess.Popen(["sleep", "600"], env=environ, start_new_session=True)
    orphan = subprocess.Popen([sys.executable, "-c", _ORPHAN, run_id, str(directory)], env=environ)
    try:
        waits = f"-> FLOCK  ADVISORY  WRITE {orphan.pid} "
        wait_until(lambda: waits in Path("/proc/locks").read_text(), what="it to wait its turn")
        assert model.poll() is None
        sweeper.stdin.close()
        assert model.wait(30) == -signal.SIGKILL
        assert orphan.wait(30) == 0 and not directory.exists()
    finally:
        sweeper.kill()
        process_tree.sweep(run_id)
        for process in (sweeper, model, orphan):
            process.wait()
        sweeper.stdout.close()
