"""The whole worker dies with accounts that its reporter had not taken: the next one tells them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from reporter import daybook
from supervisor.run_dir import ACCOUNTS_PREFIX
from tests.chaos.table import row
from tests.chaos.test_engine_away import own_engine, serve
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end


def written(directory: Path) -> int:
    """Ended requests that the producers have written down, and the reporter has not confirmed."""
    return sum(
        len(batch.closed)
        for path in directory.glob(f"{ACCOUNTS_PREFIX}*")
        for batch in daybook.read(path)
    )


@row(
    12,
    "the supervisor and a hung reporter, or every process of ours, are killed in one moment",
    seen="the same; the next start tells the engine of each request that had ended, once",
    does="accounts that the reporter has not confirmed are put into the state directory before the "
    "run's directory goes, by the run's last process or by the next start, and accounted first; "
    "the last 0.1 s before the kill are not in them",
)
@pytest.mark.parametrize("everyone", [False, True])
def test_row_12_what_had_ended_is_told_by_the_next_worker(tmp_path: Path, everyone: bool) -> None:
    with own_engine(tmp_path) as engine:
        settings = ("engine.retry_s=0.1", "engine.report_every_s=1")
        worker = Worker(tmp_path, environ=engine.environ, settings=settings).start()
        try:
            worker.wait_ready()
            serve(worker, worker.auth(), 10)
            engine.until_told(10)
            worker.kill("reporter", signal.SIGSTOP)
            serve(worker, worker.auth(), 20)
            directory = Path(worker.facts()["runtime_dir"])
            wait_until(lambda: written(directory) == 20, what="the accounts to be written")
            # a reporter that went on for a moment could tell the engine, and not note that it did
            names = ("backend_adapter", "ingress-0", "reporter") if everyone else ("reporter",)
            ours = [worker.process.pid, *(worker.pid(name) for name in names)]
            for pid in ours:
                os.kill(pid, signal.SIGSTOP)  # so that they die together
            for pid in reversed(ours):  # its death would let the others go on
                os.kill(pid, signal.SIGKILL)
            worker.process.wait()
            worker.start()
            worker.wait_ready()
            serve(worker, worker.auth(), 10)
            engine.until_told(40)
            assert not list(worker.state_dir.glob("inheritance"))
        finally:
            end(worker)
