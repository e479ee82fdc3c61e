"""Where the payloads of a benchmark come from: the settings, or the worker.py that makes each one.

Law: each draw is answered exactly once, with as many payloads as were asked for, with a figure that
makes them needless, or with a reason, at the latest after ``timeout_s``; a draw that was let go is
never answered. It must not know what is done with a payload, nor how a socket works.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from backend_adapter.hook_messages import Prepared, Sample
from supervisor.messages import Message

JSON_TYPE = b"content-type: application/json\r\n"


#: Sessions with the hook host that one draw may be asked in.
MAX_SESSIONS = 2


class Payload(msgspec.Struct, frozen=True):
    """What is sent to the model server once."""

    body: bytes
    headers: bytes
    workload: float
    hosted: bool = False  #: for the process that holds the worker.py


#: Called with the payloads, with the figure that is known already, or with the reason why there
#: is neither.
Got = Callable[[list[Payload] | float | str], None]


class Source(Protocol):
    """Draws payloads."""

    def draw(self, route: str, count: int, got: Got) -> None:
        """Have ``got`` called, now or later."""

    def let_go(self) -> None:
        """Nobody waits for a draw any more."""


class Fixed:
    """One of these each time, at random."""

    def __init__(self, payloads: list[Payload]) -> None:
        self._payloads = payloads

    def draw(self, route: str, count: int, got: Got) -> None:
        """At once."""
        got(random.choices(self._payloads, k=count))

    def let_go(self) -> None:
        """Nothing is open."""


class _Draw(msgspec.Struct):
    got: Got
    route: str
    count: int
    asked_at: float
    sessions: int = 0  #: that it was asked in
    payloads: list[Payload] = []


class Samples:
    """Asks the hook host. ``send``: hands it a message; False while no session stands."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.send: Callable[[Message], bool] = lambda message: False
        self._next = secrets.randbits(48)  # answers to the process before this one are not ours
        self._draw: _Draw | None = None
        self._ids: set[int] = set()

    def draw(self, route: str, count: int, got: Got) -> None:
        """Ask for ``count`` payloads; one draw at a time."""
        self._draw = _Draw(got, route, count, time.monotonic())
        self._ask()

    def let_go(self) -> None:
        """Answers to what was asked mean nothing any more."""
        self._draw = None
        self._ids.clear()

    def link_up(self) -> None:
        """A session began: ask what is not answered, unless that may be what ends them."""
        draw = self._draw
        if draw is not None and draw.sessions >= MAX_SESSIONS:
            self._end(draw, "worker.py died while it made a payload for the benchmark")
        else:
            self._ask()

    def link_down(self) -> None:
        """The session ended, and its questions with it."""
        self._ids.clear()

    def answered(self, messages: list[Any]) -> None:
        """The hook host's words."""
        for message in messages:
            draw = self._draw
            if draw is None or message.id not in self._ids:
                continue
            self._ids.discard(message.id)
            if not isinstance(message, Prepared):
                self._end(draw, f"no payload for the benchmark: {message.message}")
                continue
            if message.known:
                self._end(draw, message.known)
                continue
            draw.payloads.append(
                Payload(message.body, message.headers, message.workload, message.hosted)
            )
            if len(draw.payloads) == draw.count:
                self._end(draw, draw.payloads)

    def expire(self, now: float) -> None:
        """Nobody waits for ever."""
        draw = self._draw
        if draw is not None and now - draw.asked_at > self._timeout_s:
            text = f"worker.py made no payload for the benchmark within {self._timeout_s:g} s"
            self._end(draw, text)

    def _ask(self) -> None:
        if self._draw is None or self._ids:
            return
        for _ in range(self._draw.count - len(self._draw.payloads)):
            self._next += 1
            if self.send(Sample(self._next, self._draw.route)):
                self._ids.add(self._next)
        self._draw.sessions += bool(self._ids)

    def _end(self, draw: _Draw, outcome: list[Payload] | float | str) -> None:
        self.let_go()
        draw.got(outcome)
