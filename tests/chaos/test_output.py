"""A child floods its output: it is never held up, and nothing of the worker grows."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.table import row
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, post_json, running

MB = 2**20
#: What the supervisor may grow while a child floods: one read, one line, a ring of 1 MB, what waits
#: for a console that nobody reads (1 MB), and what the allocator makes of it.
SUPERVISOR_GROWS_BYTES = 24 * MB
SHORT: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 5}}


class Highest:
    """The most memory that a process was seen with, over what it had at the beginning."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._highest = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _now(self) -> int:
        return int(self._process.memory_info().rss)

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._highest = max(self._highest, self._now())

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        return self._highest - self._before


def ask(worker: Worker, auth: dict[str, Any]) -> bool:
    told = post_json(f"{worker.url}/generate", {"auth_data": auth, "payload": SHORT})
    return "generated_text" in told


def flood(worker: Worker, megabytes: int, long_line_mb: int) -> int:
    """The model server prints; returns how much, once all of it has left its hands."""
    fault = {"kind": "flood_log", "megabytes": megabytes, "long_line_mb": long_line_mb}
    told = post_json(f"http://127.0.0.1:{worker.model_port}/demo/fault", fault)
    return int(told["written_bytes"])


@row(
    14,
    "the model server prints one line of 100 MB and 20 MB of short ones, while the reporter is"
    " stopped (SIGSTOP)",
    seen="the model server is never held up by its output; `status` counts what was cut off its"
    " lines; `logs model` has the last ones",
    does="reads every pipe all the time, cuts a line at 16 KiB, keeps 3 files of 16 MiB and the"
    " last 500 lines; the supervisor's memory stays within 24 MB of what it was",
)
def test_row_14_a_flood_is_drained_whatever_else_happens(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        auth = worker.auth()
        old = worker.kill("reporter", signal.SIGSTOP)
        with Highest(worker.process.pid) as memory:
            assert flood(worker, 20, 100) >= 120 * MB
            assert ask(worker, auth)
            assert flood(worker, 1, 0) >= MB
            worker.wait_replaced("reporter", old)
        assert memory.grown_bytes < SUPERVISOR_GROWS_BYTES
        assert worker.members()["model"]["log_cut_bytes"] >= 99 * MB
        lines = worker.command("logs", "model", "0")["lines"]
        assert len(lines) == 500 and "flood" in lines[-3]
        kept = sum(path.stat().st_size for path in (worker.state_dir / "logs").glob("model.log*"))
        assert kept <= 3 * 16 * MB + MB
        assert worker.members()["model"]["restarts"] == 0
        wait_until(lambda: ask(worker, auth), what="an answer")


class Unread(Worker):
    """Its own output goes into a pipe that nobody reads."""

    @property
    def printed(self) -> str:
        return "(nobody reads it)"


@contextmanager
def unread(directory: Path, *settings: str) -> Iterator[tuple[Unread, int]]:
    worker = Unread(directory, settings=settings)
    os.mkfifo(worker.output)
    reader = os.open(worker.output, os.O_RDONLY | os.O_NONBLOCK)
    worker.start()
    try:
        yield worker, reader
    finally:
        end(worker)
        os.close(reader)


@row(
    14,
    "nobody reads what the worker itself prints (a terminal that was stopped, a full pipe), and a"
    " child floods what is shown there",
    seen="requests are answered; once somebody reads again: `(N lines dropped: too slow a reader)`,"
    " and what follows",
    does="lets one thread write; 1 MB may wait for it, the rest is dropped and counted",
)
def test_row_14_nobody_reads_the_workers_own_output(tmp_path: Path) -> None:
    with unread(tmp_path, "model.info_log=flood") as (worker, reader):
        worker.wait_ready()
        auth = worker.auth()
        with Highest(worker.process.pid) as memory:
            assert flood(worker, 20, 0) >= 20 * MB
            assert ask(worker, auth)
        assert memory.grown_bytes < SUPERVISOR_GROWS_BYTES
        assert {member["restarts"] for member in worker.members().values()} == {0}
        read = b""

        def told() -> bool:
            nonlocal read
            with suppress(BlockingIOError):
                read = (read + os.read(reader, MB))[-4 * MB :]
            return b"lines dropped: too slow a reader" in read

        wait_until(told, what="word of what was dropped")
        worker.process.terminate()
        wait_until(lambda: told() and b"stopped after" in read, what="the last words")
        assert worker.process.wait(60) == 0
