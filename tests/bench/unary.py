"""Small requests and answers: how many a second, and how long each takes."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import stand
from tests.bench.table import Goal, Row

CONNECTIONS = (1, 32, 128, 512)
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def wrk(url: str, script: Path, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second, median and 99th percentile of the latency in milliseconds."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("needs wrk: install the distribution's package")
    argv = [
        program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--timeout", "30s",
        "-s", str(script), "--latency", url,
    ]  # fmt: skip
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise SystemExit(f"{url} answered errors:\n{printed}")

    def figure(pattern: str) -> float:
        found = re.search(pattern, printed)
        assert found is not None, printed
        value, unit = float(found[1]), found[2] if found.re.groups > 1 else "ms"
        return value * _UNITS[unit]

    return {
        "rps": figure(r"Requests/sec:\s+([\d.]+)"),
        "p50": figure(r"50%\s+([\d.]+)(us|ms|s)"),
        "p99": figure(r"99%\s+([\d.]+)(us|ms|s)"),
    }


def scripts(directory: Path, bench: stand.Stand) -> dict[str, Path]:
    """What wrk is to send to each."""
    found = {}
    for name in bench.urls:
        body = bench.body(name, stand.PAYLOAD).decode()
        found[name] = directory / f"{name}.lua"
        found[name].write_text(
            'wrk.method="POST"\nwrk.headers["Content-Type"]="application/json"\n'
            f"wrk.body={json.dumps(body)}\n"
        )
    return found


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """In turn, ``rounds`` times; medians."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with stand.static(directory) as bench:
            sent = scripts(directory, bench)
            for each, url in bench.urls.items():
                wrk(url + stand.ROUTE, sent[each], 32, 1)
            for connections in CONNECTIONS:
                runs: dict[str, list[dict[str, float]]] = {each: [] for each in bench.urls}
                for _ in range(rounds):
                    for each, url in bench.urls.items():
                        took = wrk(url + stand.ROUTE, sent[each], connections, seconds)
                        runs[each].append(took)
                yield from _rows(connections, runs)


def _rows(connections: int, runs: dict[str, list[dict[str, float]]]) -> Iterator[Row]:
    def medians(what: str) -> dict[str, float]:
        return {name: statistics.median(one[what] for one in some) for name, some in runs.items()}

    many = f"{connections} connection{'s' if connections > 1 else ''}"
    rate = Row(f"unary, {many}", "requests/s", medians("rps"))
    if connections == 128:
        rate.goals = [Goal(0.8, beside="nginx"), Goal(40.0, beside="pyworker")]
    yield rate
    if connections == 1:
        p50, p99 = medians("p50"), medians("p99")
        yield Row(f"latency p50, {many}", "ms", p50)
        yield Row(f"latency p99, {many}", "ms", p99)
        for title, figures in (("p50", p50), ("p99", p99)):
            added = {
                name: max(value - figures["straight"], 1e-3)
                for name, value in figures.items()
                if name != "straight"
            }
            goals = [Goal(1 / 6, False, beside="pyworker")] if title == "p50" else []
            yield Row(f"added latency {title}, {many}", "ms", added, goals)
