"""Several ingress processes before one queue: what that gives, and what each process is busy with.

The share of one core that a process takes tells which of them is the next to be full.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import stand
from tests.bench.table import Row
from tests.bench.unary import scripts, wrk

PROCESSES = (1, 2, 4)
CONNECTIONS = 128


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """In turn, ``rounds`` times; medians."""
    runs: dict[int, list[dict[str, float]]] = {processes: [] for processes in PROCESSES}
    for round_ in range(rounds):
        for processes in map(int, stand.turns(map(str, PROCESSES), round_)):
            runs[processes].append(_one(processes, seconds))
    for processes, some in runs.items():
        found = {what: statistics.median(one[what] for one in some) for what in some[0]}
        title = f"{processes} ingress, {CONNECTIONS} connections"
        yield Row(title, "requests/s", {"worker": found["rps"]})
        for name in ("ingress", "backend_adapter", "reporter"):
            yield Row(f"… CPU of a request, {name}", "µs", {"worker": found[name]})


def _one(processes: int, seconds: float) -> dict[str, float]:
    settings = (f"worker.processes={processes}",)
    with tempfile.TemporaryDirectory() as name, stand.static(Path(name), (), settings) as bench:
        script, url = scripts(Path(name), bench)["worker"], bench.urls["worker"] + stand.ROUTE
        wrk(url, script, CONNECTIONS, 1)
        before = stand.cpu_s(bench)
        found = wrk(url, script, CONNECTIONS, seconds)
        after = stand.cpu_s(bench)
    each = {kind: (used - before[kind]) * 1e6 / found["requests"] for kind, used in after.items()}
    return {"rps": found["rps"], **each}
