"""What can be made to go wrong with the demo engine, and when it does.

Responsible for the one fault that is set and for when it ends. Its law: it ends after ``for_s``
seconds or ``count`` requests, whichever is first, or never. It must not know how it is carried
out, nor about HTTP: ``now`` is an argument.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=1_000_000)]


class EngineFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault, on every path that begins with ``path`` (but never on /demo/).

    down: answer 503. slow: answer after ``delay_s``. garbage: answer 200 with what is no JSON.
    drop_after_accept: do what was asked, then close the connection without an answer.
    lose: close the connection and do nothing. none: no fault.
    """

    kind: Literal["none", "down", "slow", "garbage", "drop_after_accept", "lose"]
    for_s: Seconds | None = None
    count: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    path: str = "/"
    delay_s: Seconds = 5.0


ENGINE_FAULT = msgspec.json.Decoder(EngineFault)

NO_FAULT = EngineFault("none")


class FaultSwitch:
    """The fault that is set."""

    def __init__(self) -> None:
        self._fault = NO_FAULT
        self._ends_at: float | None = None
        self._left: int | None = None

    def set(self, fault: EngineFault, now: float) -> None:
        """Let this fault happen from now on, instead of what was set before."""
        self._fault = fault
        self._ends_at = None if fault.for_s is None else now + fault.for_s
        self._left = fault.count

    def take(self, path: str, now: float) -> EngineFault:
        """What happens to a request for ``path``; counts it."""
        if self._ends_at is not None and now >= self._ends_at:
            self.set(NO_FAULT, now)
        if not path.startswith(self._fault.path):
            return NO_FAULT
        fault = self._fault
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.set(NO_FAULT, now)
        return fault
