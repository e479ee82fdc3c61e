"""Event streams: whether they keep the model's pace, when the first token comes, and how evenly the
others do. The client is ours, because wrk cannot look into a stream; measured straight, it says
what it takes itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from tests.bench import stand
from tests.bench.table import Goal, Row, beyond_straight

TOKENS = 200
PACE = 50.0


@dataclass
class Seen:
    """One stream: when it was asked for, and when its tokens came, in monotonic seconds."""

    began: float
    tokens: list[float] = field(default_factory=list)


async def _one(url: str, body: bytes) -> Seen:
    address = urlsplit(url)
    seen = Seen(time.monotonic())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {address.path} HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    data = b""
    try:
        while b"[DONE]" not in data[-64:]:
            part = await reader.read(65_536)
            if not part:
                raise SystemExit(f"a stream of {url} broke: {data[-200:]!r}")
            now = time.monotonic()
            seen.tokens += [now] * (data[-4:] + part).count(b"data:")  # one may have been cut
            data = data[-64:] + part
    finally:
        writer.close()
    seen.tokens.pop()  # [DONE] is none
    return seen


async def _all(url: str, body: bytes, streams: int) -> dict[str, float]:
    began = time.monotonic()
    ended = await asyncio.gather(*(_one(url, body) for _ in range(streams)))
    took = time.monotonic() - began
    gaps = [b - a for one in ended for a, b in itertools.pairwise(one.tokens)]
    cuts = statistics.quantiles(gaps, n=100)
    return {
        "tokens": sum(len(one.tokens) for one in ended) / took,
        "first": statistics.median(one.tokens[0] - one.began for one in ended) * 1e3,
        "gap50": cuts[49] * 1e3,
        "gap99": cuts[98] * 1e3,
    }


def _side_by_side(streams: int, pace: float, rounds: int) -> dict[str, dict[str, float]]:
    """Medians: what is measured, by name."""
    payload = {"prompt": "x", "max_tokens": TOKENS, "stream": True}
    with (
        tempfile.TemporaryDirectory() as name,
        stand.streaming(Path(name), pace, others="tuned") as bench,
    ):
        runs: dict[str, list[dict[str, float]]] = {each: [] for each in bench.urls}
        for round_ in range(-1, rounds):
            for each in stand.turns(bench.urls, round_):
                body = bench.body(each, payload)
                if each in ("straight", "nginx"):  # the model server wants the bare payload
                    body = json.dumps(payload).encode()
                many = streams if round_ >= 0 else 10  # the first, to get warm
                run = uvloop.run(_all(bench.urls[each] + stand.ROUTE, body, many))
                if round_ >= 0:
                    runs[each].append(run)
                stand.settle(bench)
    return {
        what: {each: statistics.median(one[what] for one in some) for each, some in runs.items()}
        for what in ("tokens", "first", "gap50", "gap99")
    }


def measure(rounds: int, seconds: float) -> Iterator[Row]:
    """Paced, then as fast as they come."""
    found = _side_by_side(300, PACE, rounds)
    what = f"300 streams × {PACE:g} tokens/s"
    yield Row(what, "tokens/s", found["tokens"], [Goal(0.97, beside="straight")])
    yield Row(f"{what}: first token p50", "ms", found["first"], [Goal(2, False, beside="nginx")])
    for name in ("gap50", "gap99"):
        title = f"{what}: gap p{name[3:]}"
        yield Row(title, "ms", found[name])
        yield Row(f"{title}, added", "ms", beyond_straight(found[name]))
    found = _side_by_side(100, 0.0, rounds)
    what = "100 streams, as fast as they come"
    yield Row(what, "tokens/s", found["tokens"], [Goal(0.8, beside="nginx")])
