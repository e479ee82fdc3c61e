"""How much memory processes hold, watched while something happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.worker import Worker

MIB = 2**20
OURS = ("supervisor", "ingress-0", "backend_adapter", "reporter")


def pss_bytes(pid: int) -> int:
    """Its proportional share of memory, file pages included; 0: it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines()]
    return next((int(words[1]) * 1024 for words in lines if words[0] == "Pss:"), 0)


class Peaks:
    """The highest figure of each process so far, by name, and that of all together."""

    def __init__(self, worker: Worker) -> None:
        self._pids = {name: worker.pid(name) for name in OURS[1:]}
        self._pids["supervisor"] = worker.process.pid
        self.before = self.now()
        self.highest = dict(self.before)
        self.together = sum(self.before.values())

    def now(self) -> dict[str, int]:
        """As they stand."""
        return {name: pss_bytes(pid) for name, pid in self._pids.items()}

    def look(self) -> None:
        """Take note."""
        now = self.now()
        self.together = max(self.together, sum(now.values()))
        for name, size in now.items():
            self.highest[name] = max(self.highest[name], size)

    def grown(self, name: str) -> int:
        """By how much a process has grown at most."""
        return self.highest[name] - self.before[name]


@contextmanager
def watched(worker: Worker) -> Iterator[Peaks]:
    """Look ten times a second."""
    peaks, over = Peaks(worker), threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            peaks.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()
