"""The configured routes, compiled once: what a request's path means.

A path is matched whole; one that ends in ``/*`` matches everything below it, and ``{name}`` matches
one segment, as people write them. Where several match, the exact one wins, then the first
configured. What such a route sends to the model server is the request's own path.

Pure. It knows nothing of HTTP beyond the path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import msgspec

from ingress.workload import Meter
from supervisor.settings import RouteSettings

#: Paths of the worker itself. No pattern stands for them; a route of exactly that path does.
UPDATE_PATH = b"/pyworker/update"
SESSION_CALLS = {
    b"/session/create": "create",
    b"/session/get": "get",
    b"/session/health": "health",
    b"/session/end": "end",
}
_OWN = frozenset((UPDATE_PATH, *SESSION_CALLS))
_SEGMENT = re.compile(r"\\{[^{}/]*\\}")


class Route(msgspec.Struct, frozen=True):
    """One path that clients may POST to, ready for the hot path."""

    path: str
    target: str  #: path on the model server; "": the request's own
    lane: str
    lane_limit: int
    max_queue_time_s: float
    timeout_s: float  #: inf: no limit
    redeliver: bool
    meter: Meter
    prepare: bool  #: a worker.py forms its payload, or counts its work
    hosted: bool  #: a worker.py forms its response, or is the model


class Routes:
    """Every route of the worker."""

    __slots__ = ("_exact", "_patterns", "most", "names")

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[bytes, Route] = {}
        self._patterns: list[tuple[re.Pattern[bytes], Route]] = []
        #: the configured paths
        self.names: list[str] = []
        #: units of work that one request counts for at most, on any of them
        self.most = 0.0
        for route in routes:
            self.names.append(route.path)
            self.most = max(self.most, route.meter.most)
            if is_pattern(route.path):
                self._patterns.append((_compiled(route.path), route))
            else:
                self._exact[route.path.encode()] = route

    def find(self, path: bytes) -> Route | None:
        """The route of a request's path."""
        route = self._exact.get(path)
        if route is not None or not self._patterns or path in _OWN or climbs(path):
            return route
        return next((route for pattern, route in self._patterns if pattern.fullmatch(path)), None)


def climbs(path: bytes) -> bool:
    """It could mean another path, or another server, to whoever gets it from us."""
    lower = path.lower()
    return path.startswith(b"//") or b"\\" in path or b".." in path or b"%2e" in lower


def is_pattern(path: str) -> bool:
    """It stands for many paths."""
    return path.endswith("/*") or "{" in path


def _compiled(path: str) -> re.Pattern[bytes]:
    text = re.escape(path.removesuffix("*"))
    text = _SEGMENT.sub("[^/]+", text) + (".*" if path.endswith("/*") else "")
    return re.compile(text.encode())


def compile_routes(routes: list[RouteSettings]) -> Routes:
    """The settings' routes, ready for use."""
    return Routes(
        Route(
            path=route.path,
            target=route.upstream or ("" if is_pattern(route.path) else route.path),
            lane=route.lane,
            lane_limit=route.concurrency,
            max_queue_time_s=route.max_queue_time_s,
            timeout_s=route.timeout_s or math.inf,
            redeliver=route.redeliver,
            meter=Meter(route.workload),
            prepare=route.prepare,
            hosted=route.hosted,
        )
        for route in routes
    )
