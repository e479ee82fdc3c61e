"""How long a kill is felt: from SIGKILL to the next process, and to the next answer.

    python -m tests.bench.restarts [rounds]

Kills each process of the worker in turn while requests run. Prints one JSON object: seconds, as
median, least and most of the rounds (20), and what became of the requests that were under way.

- ``respawn``: from the kill to the next process.
- ``served``: from the kill to the end of the first request that was begun after it. One that finds
  no open port, or is refused, is tried again at once.
- ``beyond_load``: the same less the time that the model server itself takes to load.
- ``ready``: from the kill to the worker being ready again, as ``status`` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.environments import worker_python
from tests.bench.table import Goal, Row
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, running

IN_FLIGHT = 50
LOAD_S = 1.0
PAYLOAD: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 30}}
SHORT: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
#: As after a first death: later ones are followed by a growing delay.
PATIENT = ("restart.budget=1000", "restart.first_delay_s=0")
VICTIMS = ("model", "ingress-0", "backend_adapter", "reporter")


def children(pid: int) -> set[int]:
    """Its children, those of all its threads."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found


async def respawned(pid: int, before: set[int], began: float) -> float:
    """Seconds until the supervisor has another child."""
    while not children(pid) - before:  # noqa: ASYNC110 - nothing tells us but /proc
        await asyncio.sleep(0.001)
    return time.monotonic() - began


async def served(worker: Worker, auth: dict[str, Any], began: float) -> float:
    """Seconds until a request that is begun now, or again, is answered."""
    url, body = f"{worker.url}/generate", {"auth_data": auth, "payload": SHORT}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        while True:
            try:
                async with session.post(url, json=body) as answer:
                    if answer.status == 200 and await answer.read():
                        return time.monotonic() - began
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.002)


async def kill_under_load(
    worker: Worker, name: str, auth: dict[str, Any]
) -> tuple[dict[str, float], Counter[str]]:
    """One round: seconds, and outcomes."""
    async with Load(worker.url, auth) as load:
        for _ in range(IN_FLIGHT):
            load.start("/generate", PAYLOAD)
        await asyncio.to_thread(
            wait_until, lambda: worker.status()["queue"].get("running") == IN_FLIGHT
        )
        supervisor = worker.process.pid
        before, pid = children(supervisor), await asyncio.to_thread(worker.pid, name)
        began = time.monotonic()
        os.kill(pid, 9)
        respawn, answer = await asyncio.gather(
            respawned(supervisor, before, began), served(worker, auth, began)
        )
        await asyncio.to_thread(worker.wait_replaced, name, pid)
        await asyncio.to_thread(wait_until, lambda: worker.status()["ready"])
        ready = time.monotonic() - began
        figures = {"respawn": respawn, "served": answer, "ready": ready}
        if name == "model":
            figures["beyond_load"] = answer - LOAD_S
        return figures, await load.outcomes()


def measured(rounds: int) -> dict[str, Any]:
    """Kill everything in turn, ``rounds`` times."""
    figures: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        running(
            Path(directory),
            model_flags=("--tokens-per-second", "30", "--load-seconds", str(LOAD_S)),
            settings=PATIENT,
            python=worker_python(),
        ) as worker,
    ):
        auth = worker.auth()
        for name in VICTIMS:
            times, outcomes = [], Counter[str]()
            for _ in range(rounds):
                one, became = asyncio.run(kill_under_load(worker, name, auth))
                times.append(one)
                outcomes += became
            figures[name] = {what: _spread([each[what] for each in times]) for what in times[0]}
            figures[name]["outcomes"] = dict(outcomes)
    return figures


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """As rows of the table of all measurements."""
    for name, found in measured(rounds).items():
        goals = [Goal(0.1, False)]
        yield Row(f"kill → respawn, {name}", "s", {"worker": found["respawn"]["median"]}, goals)
        what = "beyond_load" if "beyond_load" in found else "served"
        yield Row(f"kill → next answer, {name}", "s", {"worker": found[what]["median"]})
    yield from _frozen(rounds)


def _frozen(rounds: int) -> Iterator[Row]:
    """From SIGSTOP to the end of the process that stands still."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running(Path(directory), settings=PATIENT, python=worker_python()) as worker,
    ):
        for name in VICTIMS[1:]:
            took = []
            for _ in range(rounds):
                pid, began = worker.kill(name, signal.SIGSTOP), time.monotonic()
                wait_until(lambda: pid not in children(worker.process.pid))  # noqa: B023
                took.append(time.monotonic() - began)
                worker.wait_replaced(name, pid)
            what = f"frozen → killed, {name}"
            yield Row(what, "s", {"worker": statistics.median(took)}, [Goal(4.0, False)])


def _spread(values: list[float]) -> dict[str, float]:
    median = statistics.median(values)
    return {
        "median": round(median, 3), "min": round(min(values), 3), "max": round(max(values), 3)
    }  # fmt: skip


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as in ``__main__.py``
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rounds", nargs="?", type=int, default=20, help="kills of each process")
    many = parser.parse_args().rounds
    about = {"rounds": many, "model_load_s": LOAD_S, "load_average": os.getloadavg()[0]}
    print(json.dumps({**about, **measured(many)}, indent=1))
