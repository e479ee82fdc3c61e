"""How long a kill is felt: from SIGKILL to the next process, and to the worker being ready again.

    python -m tests.bench.restarts [rounds]

Prints one JSON object: seconds, median and worst, for every process of the worker, while requests
run; and what became of those requests.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from supervisor import process_tree
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, running

IN_FLIGHT = 50
PAYLOAD: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 30}}


async def kill_under_load(
    worker: Worker, name: str, auth: dict[str, Any]
) -> tuple[float, float, Counter[str]]:
    """One round: seconds to the next process, seconds to ready, outcomes."""
    async with Load(worker.url, auth) as load:
        for _ in range(IN_FLIGHT):
            load.start("/generate", PAYLOAD)
        await asyncio.to_thread(
            wait_until, lambda: worker.status()["queue"].get("running") == IN_FLIGHT
        )
        old = await asyncio.to_thread(worker.kill, name)
        began = time.monotonic()

        def replaced() -> bool:
            return any(pid != old for pid in process_tree.find_run(worker.run_id, name))

        await asyncio.to_thread(wait_until, replaced)
        respawned = time.monotonic() - began
        await asyncio.to_thread(worker.wait_replaced, name, old)
        await asyncio.to_thread(wait_until, lambda: worker.status()["ready"])
        ready = time.monotonic() - began
        return respawned, ready, await load.outcomes()


def main(rounds: int) -> None:
    """Kill everything in turn, ``rounds`` times."""
    figures: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        running(
            Path(directory),
            model_flags=("--tokens-per-second", "30"),
            settings=("restart.budget=1000",),
        ) as worker,
    ):
        auth = worker.auth()
        for name in ("model", "ingress-0", "backend_adapter", "reporter"):
            respawn, ready, outcomes = [], [], Counter[str]()
            for _ in range(rounds):
                one = asyncio.run(kill_under_load(worker, name, auth))
                respawn.append(one[0])
                ready.append(one[1])
                outcomes += one[2]
            figures[name] = {
                "kill_to_respawn_s": _spread(respawn),
                "kill_to_ready_s": _spread(ready),
                "outcomes": dict(outcomes),
            }
    print(json.dumps(figures, indent=1))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "worst": round(max(values), 3)}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
