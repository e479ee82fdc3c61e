"""What the soak asks, and what the right answer is, to the byte.

The demo model's answer follows from the prompt (``supervisor/demo/markov.py``); each prompt is
unique, so that an answer that reaches another client is seen. Requests of one seed are the same in
every run. This module knows no sockets and no clock.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from supervisor.demo.generation import Generation
from supervisor.demo.markov import Markov
from supervisor.demo.model import CORPUS
from supervisor.demo.model_api import Context, Result
from supervisor.demo.voice_tgi import parse_generate, parse_generate_stream

#: Kinds of requests, and how often each is drawn.
SHARES = {
    "unary": 36, "stream": 28, "serial": 8, "large": 3, "leaver": 8, "leaving_stream": 4,
    "slow": 2, "forged": 4, "session": 2,
}  # fmt: skip
STREAMS = ("stream", "leaving_stream", "slow")
LEAVERS = ("leaver", "leaving_stream")
LARGE_CHARS = 1_000_000
WORK = (1, 1_000)  #: workload of a request
SESSION_WORK = (1_000, 60_000)  #: that of a session
SESSION_LIFETIME_S = 20
_SUBJECTS = ("tide", "quay", "engine", "queue", "harbour", "signal", "ship", "clock")


@dataclass
class Ask:
    """One request.

    Attributes:
        idx: the engine's number of it; 0: it has none.
        kind: one of ``SHARES``, or ``inside``, ``create``, ``end``.
        work: workload that it claims.
        leave_after_s: seconds after which its client goes.
    """

    idx: int
    kind: str
    route: str
    payload: dict[str, Any]
    work: int
    leave_after_s: float = 0.0
    session: dict[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Its name in the model server's journal."""
        return str(self.payload.get("request_id", ""))


@dataclass
class Visit:
    """What one client does, one request after the other: most do one thing."""

    asks: list[Ask]


class Mix:
    """Endless requests. ``first``: the first number."""

    def __init__(self, seed: int, first: int = 1) -> None:
        self._random = random.Random(f"mix {seed} {first}")
        self._seed = seed
        self._next = first

    def visits(self, requests: int, *, slow: bool = True, serial: bool = True) -> Iterator[Visit]:
        """So many requests, in visits. ``slow``: some clients read slowly; ``serial``: some
        requests run one at a time.
        """
        left = requests
        without = {"slow": not slow, "serial": not serial}
        shares = {kind: share for kind, share in SHARES.items() if not without.get(kind)}
        while left > 0:
            (kind,) = self._random.choices(list(shares), list(shares.values()))
            if kind == "session" and left >= 4:
                inside = min(self._random.randint(2, 6), left - 2)
                visit = [self._create(), *(self._ask("inside") for _ in range(inside)), self._end()]
            else:
                visit = [self._ask("unary" if kind == "session" else kind)]
            left -= len(visit)
            yield Visit(visit)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _ask(self, kind: str) -> Ask:
        draw = self._random
        number = self._number()
        tokens = {"serial": 3, "slow": 450}.get(kind) or draw.randint(5, 60)
        prompt = f"soak {self._seed} {number}: about the {draw.choice(_SUBJECTS)}"
        if kind == "large":
            prompt += " x" * (LARGE_CHARS // 2)
        work = draw.randint(*WORK)
        payload = {
            "inputs": prompt,
            "parameters": {"max_new_tokens": tokens},
            "request_id": f"{self._seed}-{number}",
            "work": work,
        }
        route = "/generate_stream" if kind in STREAMS else "/generate"
        if kind == "serial":
            route = "/serial"
        leave = draw.uniform(0.01, 0.3) if kind in LEAVERS else 0.0
        return Ask(number, kind, route, payload, work, leave)

    def _create(self) -> Ask:
        work = self._random.randint(*SESSION_WORK)
        payload = {"lifetime": SESSION_LIFETIME_S}
        return Ask(self._number(), "create", "/session/create", payload, work)

    def _end(self) -> Ask:
        return Ask(0, "end", "/session/end", {}, 0)


class Oracle:
    """Knows every answer."""

    def __init__(self) -> None:
        self._model = Markov(CORPUS.read_text(encoding="utf-8"))

    def answer(self, ask: Ask) -> bytes:
        """The body that the model server gives, whole."""
        context = Context("", "", 0, 0)
        body = json.dumps(ask.payload).encode()
        parse = parse_generate_stream if ask.kind in STREAMS else parse_generate
        asked = parse(body, context)
        generation = Generation(self._model, asked.ask, random.Random(asked.ask.seed).random)
        events, sent = asked.voice.opening() if asked.stream else b"", 0
        words = []
        while generation.finish is None:
            new = generation.step()
            if not asked.stream:
                words += new
                continue
            last = new.pop() if generation.finish is not None and new else None
            for token in new:
                events += asked.voice.token(sent, token)
                sent += 1
            if generation.finish is not None:
                result = Result(generation.text, [], generation.made, generation.finish)
                events += asked.voice.closing(sent, last, result)
        if asked.stream:
            return events
        return asked.voice.whole(
            Result(generation.text, words, generation.made, generation.finish or "length")
        )
