"""Who dies when: kills on purpose, deaths seen through pidfds, and what each process holds.

Every process is held by its pidfd from the moment it is seen, so that the time of a death is that
of the process, not of a poll.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from supervisor import process_tree
from supervisor.process_scan import processes
from tests.kit.worker import Worker

POLL_S = 0.1
#: The local engine stands for one that is far away: nobody kills it here.
SPARED = "engine"


@dataclass
class Death:
    """One process's end. Times are monotonic; ``inf``: it has not happened.

    Attributes:
        signal: ``SIGKILL`` or ``SIGSTOP`` of ours; "": nobody here did it.
        hurt_at: when it was signalled, or died by itself.
        back_at: when the next one was ready.
    """

    name: str
    pid: int
    signal: str
    hurt_at: float
    died_at: float = float("inf")
    back_at: float = float("inf")


class Watch:
    """Polls the worker's status, holds every process, and notes deaths."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._held: dict[int, tuple[str, int]] = {}
        self._hurt: dict[int, Death] = {}
        self.deaths: list[Death] = []
        self.members: dict[str, dict[str, Any]] = {}
        self.mute = 0  #: polls that the supervisor did not answer
        self.ticks = 0

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(POLL_S)
        finally:
            for fd in self._held:
                asyncio.get_running_loop().remove_reader(fd)
                os.close(fd)

    async def look(self) -> None:
        """Once."""
        members = await asyncio.to_thread(self._worker.members)
        self.mute += not members
        self.members = members or self.members
        self.ticks += 1
        # the status may be older than a death that was seen meanwhile
        held = {pid for _, pid in self._held.values()} | {death.pid for death in self.deaths}
        for name, member in members.items():
            pid = member["pid"]
            if name != SPARED and pid and pid not in held:
                with suppress(ProcessLookupError):  # the next look sees its successor
                    self._hold(name, pid)
            if member["state"] == "ready":
                for death in self.deaths:
                    if death.name == name and death.pid != pid:
                        death.back_at = min(death.back_at, time.monotonic())

    def _hold(self, name: str, pid: int) -> None:
        fd = os.pidfd_open(pid)
        self._held[fd] = name, pid
        asyncio.get_running_loop().add_reader(fd, self._died, fd)

    def _died(self, fd: int) -> None:
        name, pid = self._held.pop(fd)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        now = time.monotonic()
        death = self._hurt.pop(pid, None)
        if death is None:
            death = Death(name, pid, "", now)
            self.deaths.append(death)
        death.died_at = now

    def hurt(self, name: str, number: signal.Signals) -> bool:
        """Signal a member that is ready. False: it is not."""
        fd, pid = next(((fd, p) for fd, (n, p) in self._held.items() if n == name), (0, 0))
        member = self.members.get(name, {})
        if not fd or member.get("pid") != pid or member.get("state") != "ready":
            return False
        if pid in self._hurt:
            return False
        death = self._hurt[pid] = Death(name, pid, number.name, time.monotonic())
        self.deaths.append(death)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        return True

    @property
    def all_well(self) -> bool:
        """Every death is over, and everybody is ready."""
        return not self._hurt and all(m["state"] == "ready" for m in self.members.values())

    @property
    def unseen(self) -> int:
        """Restarts that the supervisor counts and nobody here saw."""
        counted = sum(m["restarts"] for n, m in self.members.items() if n != SPARED)
        return int(counted) - len(self.deaths)


async def harm(watch: Watch, seed: int, every_s: float, names: Callable[[], list[str]]) -> None:
    """Every ``every_s`` seconds hurt one that is ready, until cancelled."""
    draw = random.Random(f"harm {seed}")
    while True:
        await asyncio.sleep(every_s)  # the pace is what was asked for
        order = names()
        draw.shuffle(order)
        number = signal.SIGSTOP if draw.random() < 0.3 else signal.SIGKILL
        next((name for name in order if watch.hurt(name, number)), None)


@dataclass
class Holding:
    """What one process holds, besides TCP connections."""

    files: int
    threads: int
    connections: int
    rss_mb: float


def census(worker: Worker, members: dict[str, dict[str, Any]]) -> dict[str, Holding]:
    """What each process holds now."""
    pids = {name: m["pid"] for name, m in members.items() if name != SPARED}
    holdings = {}
    for name, pid in {"supervisor": worker.process.pid, **pids}.items():
        process = psutil.Process(pid)
        with process.oneshot():
            connections = [c for c in process.net_connections("tcp") if c.status != "LISTEN"]
            holdings[name] = Holding(
                process.num_fds() - len(connections),
                process.num_threads(),
                len(connections),
                round(process.memory_info().rss / 2**20, 1),
            )
    return holdings


def strays(worker: Worker, members: set[int]) -> list[str]:
    """Processes of the run that are no members, and exits that nobody has taken."""
    found = set(process_tree.find_run(worker.run_id)) - members - {worker.process.pid}
    dead = [p.pid for p in processes() if p.parent == worker.process.pid and not p.alive]
    return [f"process {pid}" for pid in found] + [f"zombie {pid}" for pid in dead]


def names_in(directory: Path) -> set[str]:
    """Every file below it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
