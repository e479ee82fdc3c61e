"""The meter: how much work a request is.

Responsible for one number per request: read from the payload field that the settings name,
without decoding the rest, or the settings' default.

Law: the result is always a multiple of 1/1024, at least 1/1024 and at most the route's maximum,
whatever the client sends, so that sums of workloads are exact and no client can poison the load. A
claim beyond the maximum counts as the maximum, and the request goes on as it is: whether it may ask
for so much is the model server's to say, and what it then does is seldom all of it.

It must not know who sends the payload nor where it goes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec

from supervisor.settings import Workload

MAX_WORKLOAD = 2.0**40
_PARTS = 1024
LEAST_WORKLOAD = 1 / _PARTS


def quantised(value: float, default: float) -> float:
    """Return ``value`` as a workload; ``default`` where it is no positive number up to 2**40."""
    if not 0 < value <= MAX_WORKLOAD:
        value = default
    parts = round(value * _PARTS)
    return parts / _PARTS if parts > 1 else LEAST_WORKLOAD


class Meter:
    """Measures the requests of one route; compiled once, used for every request."""

    __slots__ = ("_decode", "_default", "_dig", "_most")

    def __init__(self, workload: Workload) -> None:
        keys = workload.field.split(".") if workload.field else []
        self._default = quantised(workload.default, workload.default)
        self._most = quantised(workload.most, workload.most)
        self._dig = attrgetter(".".join(["inner"] * len(keys))) if keys else None
        shape: Any = int | float | None
        for key in reversed(keys):
            shape = msgspec.defstruct(
                "Level", [("inner", shape | None, None)], rename={"inner": key}, gc=False
            )
        self._decode = msgspec.json.Decoder(shape).decode

    @property
    def most(self) -> float:
        """What no request exceeds."""
        return self._most

    def measure(self, payload: msgspec.Raw | bytes | memoryview) -> float:
        """Return the workload of a payload (JSON text).

        The default stands in where the field is missing, no number (numeric text and booleans are
        none), or not positive.
        """
        dig = self._dig
        if dig is None:
            return self._default
        try:
            value = dig(self._decode(payload))
        except (ValueError, RecursionError, AttributeError):  # the last: there is null on the way
            return self._default
        if value is None:
            return self._default
        return quantised(value, self._default) if value < self._most else self._most
