"""How much memory processes hold, watched while something happens, beside what is stated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from supervisor.memory_budget import items, total_bytes
from supervisor.settings import Settings
from supervisor.settings_sources import Handoff
from tests.kit.worker import Worker

MIB = 2**20
OURS = ("supervisor", "ingress-0", "backend_adapter", "reporter")
#: Settings that leave what is stated little room above what tests make the processes hold.
SMALL = (
    "limits.connections=1024", "limits.unsent_bytes=4194304", "queue.max_bytes=16777216",
    "model.max_connections=100",
)  # fmt: skip


def pss_bytes(pid: int) -> int:
    """Its proportional share of memory, file pages included; 0: it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines()]
    return next((int(words[1]) * 1024 for words in lines if words[0] == "Pss:"), 0)


class Peaks:
    """The highest figure of each process so far, by name, and that of all together.

    A process that is replaced goes on under its name.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pids = {name: worker.pid(name) for name in OURS[1:]}
        self._pids["supervisor"] = worker.process.pid
        self.before = self.now()
        self.highest = dict(self.before)
        self.together = sum(self.before.values())

    def now(self) -> dict[str, int]:
        """As they stand."""
        sizes = {name: pss_bytes(pid) for name, pid in self._pids.items()}
        for name, size in sizes.items():
            if not size and name in OURS[1:]:
                self._pids[name] = self._worker.pid(name) or self._pids[name]
        return sizes

    def look(self) -> None:
        """Take note."""
        now = self.now()
        self.together = max(self.together, sum(now.values()))
        for name, size in now.items():
            self.highest[name] = max(self.highest[name], size)

    def grown(self, name: str) -> int:
        """By how much a process has grown at most."""
        return self.highest[name] - self.before[name]

    def assert_as_stated(self) -> None:
        """Neither one of them nor all together held more than docs/memory.md says.

        Both sides count the same: whole processes by their proportional share, all four of ours,
        and neither the model server nor the local engine.
        """
        settings = settings_of(self._worker)
        assert settings.worker.processes == 1
        stated = dict.fromkeys(OURS, 0)
        for item in items(settings):
            stated["ingress-0" if item.process == "ingress" else item.process] += item.bytes
        for name in OURS:
            assert 0 < self.highest[name] < stated[name], (name, self.highest, stated)
        assert 0 < self.together < total_bytes(settings), (self.together, self.highest)


def settings_of(worker: Worker) -> Settings:
    """Those that every process of it has read."""
    path = Path(worker.facts()["runtime_dir"]) / "handoff.msgpack"
    return msgspec.msgpack.decode(path.read_bytes(), type=Handoff).settings


@contextmanager
def watched(worker: Worker) -> Iterator[Peaks]:
    """Look ten times a second, and once more at the end."""
    peaks, over = Peaks(worker), threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            peaks.look()
        peaks.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()
