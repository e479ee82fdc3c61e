"""Bodies of 1 KB, 1 MB and 10 MB, up and down, one request after the other on a kept connection."""

from __future__ import annotations

import http.client
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench import stand
from tests.bench.table import Goal, Row

SIZES = (1_000, 1_000_000, 10_000_000)
PER_ROUND = 8


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """In turn; medians of all requests."""
    with (
        tempfile.TemporaryDirectory() as name,
        stand.static(Path(name), SIZES, others="tuned") as bench,
    ):
        kept = {
            each: http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            for each, url in bench.urls.items()
        }
        for size in SIZES:
            text = "x" * size
            up = {each: bench.body(each, {"prompt": text, "max_tokens": 4}) for each in kept}
            down = {each: bench.body(each, {"max_tokens": 4}) for each in kept}
            for way, route, bodies in (
                ("up", stand.ROUTE, up),
                ("down", f"/files/{size}", down),
            ):
                took: dict[str, list[float]] = {each: [] for each in kept}
                for turn in range(rounds * PER_ROUND + 1):
                    for each in stand.turns(kept, turn):
                        ms = _ask(kept[each], route, bodies[each])
                        if turn:  # the first is to get warm
                            took[each].append(ms)
                figures = {each: statistics.median(some) for each, some in took.items()}
                goals = [Goal(2.0, False, beside="nginx")] if size == SIZES[-1] else []
                yield Row(f"{size / 1e6:g} MB {way}", "ms", figures, goals)
        for connection in kept.values():
            connection.close()


def _ask(connection: http.client.HTTPConnection, route: str, body: bytes) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    connection.request("POST", route, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    read = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{route} answered {answer.status}: {read[:200]!r}")
    return (time.perf_counter() - began) * 1e3
