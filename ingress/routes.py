"""The configured routes, compiled once: what a request's path means.

Pure. It knows nothing of HTTP beyond the path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ingress.workload import Meter
from supervisor.settings import RouteSettings


@dataclass(frozen=True, slots=True)
class Route:
    """One path that clients may POST to, ready for the hot path."""

    path: str
    target: str  #: path on the model server
    lane: str
    lane_limit: int
    max_queue_time_s: float
    timeout_s: float  #: inf: no limit
    redeliver: bool
    meter: Meter


def compile_routes(routes: list[RouteSettings]) -> dict[bytes, Route]:
    """Path as it stands in a request line → route."""
    return {
        route.path.encode(): Route(
            path=route.path,
            target=route.target,
            lane=route.lane,
            lane_limit=route.concurrency,
            max_queue_time_s=route.max_queue_time_s,
            timeout_s=route.timeout_s or math.inf,
            redeliver=route.redeliver,
            meter=Meter(route.workload),
        )
        for route in routes
    }
