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
from tests.bench.table import Goal, Row, beyond_straight

CONNECTIONS = (1, 32, 128, 512)
#: What is full load, in connections.
FULL = 128
#: Before the names of those that are measured as they come, at full load only.
PLAIN = "plain "
#: Bodies of so many lengths.
LENGTHS = 1_000
#: At half load each connection pauses, on average so many milliseconds, drawn anew each time …
PAUSE_MS = 10
#: … and there are as many as it takes, found in so many tries of a second.
TRIES = 3
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
#: What wrk found in each round, by name.
Runs = dict[str, list[dict[str, float]]]


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
        "requests": figure(r"(\d+) requests in"),
        "rps": figure(r"Requests/sec:\s+([\d.]+)"),
        "p50": figure(r"50%\s+([\d.]+)(us|ms|s)"),
        "p99": figure(r"99%\s+([\d.]+)(us|ms|s)"),
    }


def scripts(directory: Path, bench: stand.Stand, more: str = "") -> dict[str, Path]:
    """What wrk is to send to each; ``more`` of its script."""
    names = {name: name for name in bench.urls}
    names |= {PLAIN + name: url for name, url in bench.plain.items()}
    found = {}
    for name, auth in names.items():
        body = bench.body(auth, stand.PAYLOAD).decode()
        found[name] = directory / f"{name}{len(more)}.lua"
        found[name].write_text(
            'wrk.method="POST"\nwrk.headers["Content-Type"]="application/json"\n'
            f"wrk.body={json.dumps(body)}\n{more}"
        )
    return found


#: The same request with a prompt of another length each time.
_VARIED = f"""
local requests, at = {{}}, 0
function init()
  for n = 1, {LENGTHS} do
    local body = wrk.body:gsub("hello world", string.rep("h", n) .. " world")
    requests[n] = wrk.format(nil, nil, nil, body)
  end
end
function request()
  at = at % {LENGTHS} + 1
  return requests[at]
end
"""


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """In turn, ``rounds`` times; medians."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with stand.static(directory, others="as they come, too") as bench:
            sent = scripts(directory, bench)
            urls = bench.urls | {PLAIN + each: url for each, url in bench.plain.items()}
            for each, url in urls.items():
                wrk(url + stand.ROUTE, sent[each], 32, 1)

            def runs(
                sent: dict[str, Path], connections: dict[str, int], route: str = stand.ROUTE
            ) -> Runs:
                found: Runs = {each: [] for each in connections}
                for round_ in range(rounds):
                    for each in stand.turns(connections, round_):
                        many = connections[each]
                        found[each].append(wrk(urls[each] + route, sent[each], many, seconds))
                return found

            rates: dict[str, float] = {}
            for connections in CONNECTIONS:
                whom = urls if connections == FULL else bench.urls
                found = runs(sent, dict.fromkeys(whom, connections))
                plain = {each: found.pop(PLAIN + each) for each in bench.plain if whom is urls}
                yield from _rows(connections, found)
                if whom is urls:
                    rates = _medians(found, "rps")
                    beside = _medians({**plain, "worker": found["worker"]}, "rps")
                    title = f"unary, {FULL} connections; the others as they come"
                    yield Row(title, "requests/s", beside)
            varied = scripts(directory, bench, _VARIED)
            found = runs(varied, dict.fromkeys(bench.urls, FULL), stand.VARIED)
            title = f"unary, {FULL} connections; bodies and answers of {LENGTHS:,} lengths"
            yield Row(title, "requests/s", _medians(found, "rps"))
            # the same rate for all, half of what the worker can; the public one at half of its own
            pausing = scripts(
                directory, bench, f"function delay() return math.random(0, {2 * PAUSE_MS}) end\n"
            )
            many = {}
            for each, url in bench.urls.items():
                rate = rates["pyworker" if each == "pyworker" else "worker"] / 2
                many[each] = max(1, round(rate * PAUSE_MS / 1e3))
                for _ in range(TRIES):
                    reached = wrk(url + stand.ROUTE, pausing[each], many[each], 1)["rps"]
                    many[each] = max(1, round(many[each] * rate / reached))
            found = runs(pausing, many)
            yield Row("half load", "requests/s", _medians(found, "rps"))
            yield from _latency("half load", found)


def _medians(runs: Runs, what: str) -> dict[str, float]:
    return {name: statistics.median(one[what] for one in some) for name, some in runs.items()}


def _latency(when: str, runs: Runs) -> Iterator[Row]:
    """As it is, and what each adds to the model server's own."""
    for title in ("p50", "p99"):
        figures = _medians(runs, title)
        yield Row(f"latency {title}, {when}", "ms", figures)
        added = {name: max(value, 1e-3) for name, value in beyond_straight(figures).items()}
        goal = title == "p50" and when == "1 connection"
        goals = [Goal(1 / 6, False, beside="pyworker")] if goal else []
        yield Row(f"added latency {title}, {when}", "ms", added, goals)


def _rows(connections: int, runs: Runs) -> Iterator[Row]:
    many = f"{connections} connection{'s' if connections > 1 else ''}"
    rate = Row(f"unary, {many}", "requests/s", _medians(runs, "rps"))
    if connections == FULL:
        rate.goals = [Goal(0.8, beside="nginx"), Goal(40.0, beside="pyworker")]
    yield rate
    if connections == 1:
        yield from _latency(many, runs)
