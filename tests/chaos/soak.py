"""Requests under load while processes are killed: every request has one outcome, nothing is left.

    python -m tests.chaos.soak [--requests 10000] [--seed N] [--every 2] [--ingresses 2]
        [--worker-py] [--only MEMBER …]

Starts a real worker in front of the demo model server. Every ``--every`` seconds one process of
ours, or the model server, is killed (SIGKILL) or frozen (SIGSTOP) once it is ready. Prints one line
of JSON; what was wrong goes to stderr, a line each. Exit status 0: nothing was lost, duplicated,
swapped or left over, every unit of workload is accounted, and there was no other trouble.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import signal
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.soak_audit import Audit, Told, Verdict
from tests.chaos.soak_client import Client
from tests.chaos.soak_harm import SPARED, Holding, Watch, census, harm, names_in
from tests.chaos.soak_leaks import Leaked
from tests.chaos.soak_mix import Mix, Oracle, Visit
from tests.chaos.soak_worker import Record, make
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end

CLIENTS = 48
WARM_UP = 40
SAMPLE_S = 5.0


class Soak:
    """One soak of one ready worker."""

    def __init__(
        self,
        worker: Worker,
        requests: int,
        seed: int,
        every_s: float,
        worker_py: bool,
        only: Sequence[str],
    ) -> None:
        self._worker = worker
        self._requests = requests
        self._seed = seed
        self._every_s = every_s
        self._worker_py = worker_py
        self._only = only
        self.oracle = Oracle()
        self.watch = Watch(worker)
        self.record = Record(worker)
        self.client = Client(worker.url, worker.auth(), self.oracle)
        self.leaked = Leaked()
        self.trouble: list[str] = []  #: what else a worker that is well does not say
        self.seconds = 0.0
        self.holdings: dict[str, Holding] = {}
        self.samples: list[dict[str, Holding]] = []
        self._admin = worker.status()["urls"]["admin"]
        self._directory = Path(worker.facts()["runtime_dir"])

    async def run(self) -> Verdict:
        """All of it."""
        tasks = [asyncio.create_task(self.watch.run()), asyncio.create_task(self.record.run())]
        try:
            await self._visits(
                Mix(self._seed, 10_000_001).visits(WARM_UP, slow=False, serial=not self._worker_py)
            )
            await self._calm()
            first = census(self._worker, self.watch.members)
            files = names_in(self._directory)

            began = time.monotonic()
            meanwhile = [asyncio.create_task(self._sample())]
            if self._every_s:
                work = harm(self.watch, self._seed, self._every_s, self._victims)
                meanwhile.append(asyncio.create_task(work))
            tasks += meanwhile
            await self._visits(Mix(self._seed).visits(self._requests, serial=not self._worker_py))
            for task in meanwhile:
                task.cancel()
            self.seconds = time.monotonic() - began

            await self._visits(
                Mix(self._seed, 20_000_001).visits(WARM_UP, slow=False, serial=not self._worker_py)
            )
            await self._calm()
            before = census(self._worker, self.watch.members)
            more = WARM_UP + self._requests // 20
            await self._visits(
                Mix(self._seed, 30_000_001).visits(more, slow=False, serial=not self._worker_py)
            )
            await self._calm()
            self.holdings = census(self._worker, self.watch.members)
            before["supervisor"] = first["supervisor"]  # it alone has lived through all of it
            self.leaked.compare(before, self.holdings, 2 * CLIENTS)
            pids = [member["pid"] for member in self.watch.members.values()]
            self.leaked.amid(self._worker, pids, self._directory, files)
            told = await asyncio.to_thread(self._told)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Audit(self.client.seen, self.watch.deaths, told, asks=self._worker_py).run()

    async def _sample(self) -> None:
        while True:
            with suppress(psutil.Error):  # one that has just died
                self.samples.append(census(self._worker, self.watch.members))
            await asyncio.sleep(SAMPLE_S)

    def held(self) -> dict[str, list[list[float]]]:
        """Of each process that lived all the time: memory (MB), files, threads, by quarters."""
        every = self.samples[:: max(1, len(self.samples) // 4)]
        names = {"supervisor", *(self.watch.members if not self.watch.deaths else ())} - {SPARED}
        return {
            name: [[h.rss_mb, h.files, h.threads] for h in (sample[name] for sample in every)]
            for name in sorted(names)
        }

    def _victims(self) -> list[str]:
        wanted = self._only or self.watch.members
        return [name for name in self.watch.members if name != SPARED and name in wanted]

    async def _visits(self, visits: Iterator[Visit]) -> None:
        await asyncio.gather(*(self._clients(visits) for _ in range(CLIENTS)))

    async def _clients(self, visits: Iterator[Visit]) -> None:
        for visit in visits:
            session: dict[str, Any] = {}
            for ask in visit.asks:
                if ask.kind == "create":
                    seen = await self.client.ask(ask)
                    session = ask.session if seen.outcome == "ok" else {}
                elif ask.kind == "end":
                    while session:
                        again = dataclasses.replace(ask, session=session)
                        seen = await self.client.ask(again)
                        if seen.outcome in ("ok", "unknown_session"):
                            break
                elif ask.kind == "inside" and not session:
                    await self.client.ask(dataclasses.replace(ask, kind="unary"))
                else:
                    ask.session = session
                    await self.client.ask(ask)

    async def _calm(self) -> None:
        """Wait until everybody is ready, nothing works, and all has been told."""
        self.client.close()
        try:
            await asyncio.to_thread(wait_until, self._settled, 60.0, "the worker to settle")
        except AssertionError:
            self.trouble.append(f"the worker does not settle: {self._metrics()}")
        await self.watch.look()

    def _settled(self) -> bool:
        if not (self.watch.all_well and self._worker.status()["ready"]):
            return False
        with suppress(OSError):
            figures = self._metrics()
            mine = self._worker.members()
            return (
                figures["workload_pending"] == 0
                and figures["rows_waiting"] == 0
                and figures["sessions_open"] == 0
                and figures["queue_running"] == 0
                and self._idle_report()
                and all(
                    m["gauges"]["connections"] == 0
                    for name, m in mine.items()
                    if name.startswith("ingress")
                )
            )
        return False

    def _idle_report(self) -> bool:
        """The newest report says that nothing happens, and came after everything."""
        last = self.record.statuses[-1] if self.record.statuses else {"cur_load": 1}
        newest = max((seen.ended_at for seen in self.client.seen), default=0.0)
        names = ("cur_load", "cur_perf", "new_load", "rej_load", "num_requests_working")
        return last.get("received_at", 0) > newest + 1 and not any(last[name] for name in names)

    def _metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self._admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("lighterman_"): float(value) for name, value in pairs}

    def _told(self) -> Told:
        self.record.read()
        figures = self._metrics()
        for name in ("drift_total", "gaps_total", "rows_dropped_total", "store_failures_total"):
            if figures[name]:
                self.trouble.append(f"{name} is {figures[name]}")
        prefix = 'workload_total{state="'
        workload = {
            name.removeprefix(prefix)[:-2]: value
            for name, value in figures.items()
            if name.startswith(prefix)
        }
        lines = self._worker.journal.read_text().splitlines()
        journal = Counter(line.split()[1] for line in lines if line.startswith("received"))
        requests = figures["requests_received_total"]
        return Told(self.record.rows, self.record.statuses, workload, requests, journal)

    def after(self, code: int) -> None:
        """The worker has stopped, with this exit code: what is left, and what was never told?"""
        if code:
            self.trouble.append(f"exit code {code}")
        self.leaked.behind(self._worker, self._directory, self.client.url)
        with closing(sqlite3.connect(self._worker.state_dir / "reports.sqlite")) as store:
            (rows,) = store.execute("select count(*) from rows").fetchone()
        if rows:
            self.trouble.append(f"{rows} rows that the engine never got")


def soak(
    directory: Path,
    *,
    requests: int,
    seed: int,
    every_s: float,
    ingresses: int,
    worker_py: bool = False,
    only: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Run one; the line to print, and what was wrong. ``only``: who is killed; none: all."""
    worker = make(directory, ingresses, worker_py)
    worker.start()
    try:
        this = Soak(worker.wait_ready(), requests, seed, every_s, worker_py, only)
        verdict = asyncio.run(this.run())
        this.after(worker.stop())
    finally:
        end(worker)
    return report(this, verdict, seed, ingresses)


def report(
    this: Soak, verdict: Verdict, seed: int, ingresses: int
) -> tuple[dict[str, Any], list[str]]:
    """What is printed, and every fault as a line."""
    deaths, seen = this.watch.deaths, this.client.seen
    wrong = [
        *_lines("lost", verdict.lost),
        *_lines("duplicated", verdict.duplicated),
        *_lines("swapped", verdict.swapped),
        *_lines("unaccounted", verdict.unaccounted),
        *_lines("leaked", this.leaked.texts()),
        *_lines("trouble", this.trouble),
    ]
    line = {
        "seed": seed,
        "ingresses": ingresses,
        "requests": len(seen),
        "seconds": round(this.seconds, 1),
        "kills": dict(Counter(f"{d.name} {d.signal or 'by itself'}" for d in deaths)),
        "unseen_restarts": this.watch.unseen,
        "asked": dict(Counter(each.ask.kind for each in seen)),
        "outcomes": dict(Counter(each.outcome for each in seen)),
        "longest_s": round(max(each.ended_at - each.began_at for each in seen), 2),
        "refused_connections": this.client.refused_connections,
        "lost": len(verdict.lost),
        "duplicated": len(verdict.duplicated),
        "swapped": len(verdict.swapped),
        "leaked": this.leaked.counts(),
        "unaccounted": len(verdict.unaccounted),
        "trouble": len(this.trouble),
        "work_sent": verdict.sent_work,
        "untold": dict(verdict.untold),
        "untold_work": verdict.untold_work,
        "told_cancelled": verdict.told_cancelled,
        **{f"work_{state}": amount for state, amount in verdict.workload.items()},
        "rss_files_threads": this.held(),
        "rows_told_twice": verdict.rows_told_twice,
        "reports_told_twice": verdict.reports_told_twice,
    }
    return line, wrong


def _lines(name: str, texts: Iterable[str]) -> list[str]:
    return [f"{name}: {text}" for text in texts]


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--every", type=float, default=2.0, help="seconds between two kills; 0: none"
    )
    parser.add_argument("--ingresses", type=int, default=2, help="ingress processes")
    parser.add_argument("--worker-py", action="store_true", help="through a worker.py")
    parser.add_argument("--only", nargs="+", default=(), help="kill these members only")
    parser.add_argument("--keep", type=Path, help="directory to work in, which stays")
    given = parser.parse_args(argv)
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worker is stopped, too
    with tempfile.TemporaryDirectory() as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        line, wrong = soak(
            directory, requests=given.requests, seed=given.seed, every_s=given.every,
            ingresses=given.ingresses, worker_py=given.worker_py, only=given.only,
        )  # fmt: skip
    for text in wrong[:200]:
        print(text, file=sys.stderr)
    print(json.dumps(line))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
