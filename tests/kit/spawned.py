"""Processes that one test starts through ``supervisor.process_tree``; none outlives it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor import process_scan, process_tree
from supervisor.process_tree import Exit, Process
from tests.kit.wait import DEADLINE_S, wait_until

ROOT = str(Path(__file__).parents[2])


class Run:
    """The processes of one test."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.started: list[Process] = []
        self.output: dict[int, bytes] = {}

    def spawn(self, *argv: str, name: str = "child", cwd: str = ROOT) -> Process:
        process = process_tree.spawn(argv, env=dict(os.environ), cwd=cwd, run_id=self.id, name=name)
        self.started.append(process)
        self.output[process.pid] = b""
        return process

    def misbehave(self, *args: str, name: str = "child") -> Process:
        return self.spawn(sys.executable, "-m", "tests.kit.misbehaving", *args, name=name)

    def read(self, process: Process) -> str:
        """All that it has printed so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(process.output_fd, 65536):
                self.output[process.pid] += data
        return self.output[process.pid].decode()

    def said(self, process: Process, text: str) -> str:
        """Its output, once that contains ``text``."""
        wait_until(lambda: text in self.read(process), what=f"{text!r} in the output")
        return self.read(process)

    def end(self) -> None:
        assert process_tree.sweep(self.id, sids=[p.pid for p in self.started], deadline_s=10) == 0
        for process in self.started:
            if process.exit is None:
                reap(process)
            os.close(process.output_fd)
        while process_tree.reap_orphans(()):
            pass


def reap(process: Process) -> Exit:
    """Wait for the pidfd, as a loop would."""
    ready, _, _ = select.select([process.pidfd], [], [], DEADLINE_S)
    assert ready, f"process {process.pid} did not end"
    return process.reap()


@contextmanager
def processes() -> Iterator[Run]:
    """None of them is left at the end; meanwhile orphans come to us, as they do to a supervisor."""
    process_tree.become_subreaper()
    run = Run()
    try:
        yield run
    finally:
        run.end()
        process_tree.reap_orphans(())


def alive(pid: int) -> bool:
    """It is there, were it only as a zombie."""
    return any(seen.pid == pid for seen in process_scan.processes())
