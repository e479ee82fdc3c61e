"""Row 33, core files: whatever signal ends a process of ours, its memory stays with it."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.table import row
from tests.kit.wait import wait_until
from tests.kit.worker import running

PATTERN = Path("/proc/sys/kernel/core_pattern").read_text().strip()
OURS = {
    "reporter": signal.SIGABRT,
    "backend_adapter": signal.SIGSEGV,
    "ingress-0": signal.SIGABRT,
}


@pytest.fixture(autouse=True)
def _cores_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`ulimit -c unlimited`, in a directory of our own: there a bare pattern leaves them."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("this user may not have core files")
    monkeypatch.chdir(tmp_path)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def cores(directory: Path) -> list[str]:
    """Core files that lie there."""
    return sorted(name for name in os.listdir(directory) if name.startswith("core"))


def limits(pid: int) -> tuple[str, int]:
    """The soft limit of core files and the filter of a process."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Max core file size")]
    return line.split()[4], int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)


@row(
    33,
    "a process is ended by SIGABRT or SIGSEGV where core files are wanted (`ulimit -c unlimited`)",
    seen="no core file of the worker's own processes; the model server's, as without the worker",
    does="lets none of its own processes write its memory anywhere; the model server keeps the"
    " limits that the worker was started with",
)
def test_row_33_no_core_file_holds_a_secret(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        before = limits(os.getpid())
        for name, number in OURS.items():
            assert limits(worker.pid(name)) == ("1", 0)
            old = worker.kill(name, number)
            worker.wait_replaced(name, old)
            assert cores(tmp_path) == [], name
        assert limits(worker.process.pid) == ("1", 0)
        assert limits(worker.pid("model")) == before
        old = worker.kill("model", signal.SIGABRT)
        worker.wait_replaced("model", old)
        if not PATTERN.startswith("|") and not os.path.dirname(PATTERN):
            # this machine does write core files, so there was something to keep from it
            wait_until(lambda: cores(tmp_path), what="the model server's core file")
        for name in cores(tmp_path):
            os.unlink(tmp_path / name)
        os.kill(worker.process.pid, signal.SIGSEGV)
        assert worker.process.wait(30) == -signal.SIGSEGV
        wait_until(lambda: not worker.leftovers(), what="the run to be swept")
        assert cores(tmp_path) == []
