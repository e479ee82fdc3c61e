"""One generation: from what was asked to the words that are handed out.

Responsible for the number of words and for stop texts. Its law: exactly ``max_tokens`` words are
made unless a stop text appears first, and no part of a stop text is handed out when it is to be
left out. It must not know about HTTP, time, or which API the question came through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from supervisor.demo.markov import Markov, Token


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants generated."""

    prompt: str
    max_tokens: int
    temperature: float = 1.0  #: above 0
    top_p: float = 1.0  #: in (0, 1]
    seed: int = 0
    stop: tuple[str, ...] = ()
    #: TGI's answers end with the stop text, OpenAI's end before it.
    keep_stop: bool = False


class Generation:
    """The words of one answer, made one step at a time.

    ``draw``: uniform numbers in [0, 1).
    """

    def __init__(self, model: Markov, ask: Ask, draw: Callable[[], float]) -> None:
        self._words = model.walk(ask.prompt, draw, ask.temperature, ask.top_p)
        self._ask = ask
        self._held: list[Token] = []
        self._tail = ""
        self._tail_chars = max(map(len, ask.stop), default=1) - 1
        self._parts: list[str] = []
        self.made = 0  #: words made so far
        #: Why it is over; None while it is not.
        self.finish: Literal["length", "stop"] | None = None

    @property
    def text(self) -> str:
        """Everything that was handed out."""
        return "".join(self._parts)

    def step(self) -> list[Token]:
        """Make one word; the words to hand out now (none while they may begin a stop text)."""
        if self.finish is not None:
            raise RuntimeError(f"step() after the generation was over ({self.finish})")
        token = next(self._words)
        self.made += 1
        if self.made >= self._ask.max_tokens:
            self.finish = "length"
        if not self._ask.stop:
            self._parts.append(token.text)
            return [token]
        self._held.append(token)
        out = self._released(token.text)
        self._parts.extend(part.text for part in out)
        return out

    def _released(self, new: str) -> list[Token]:
        """What of the held words may go, now that ``new`` was added to them."""
        seen = self._tail + new
        found = [at for at in (seen.find(stop) for stop in self._ask.stop) if at >= 0]
        self._tail = seen[-self._tail_chars :] if self._tail_chars else ""
        if found:
            self.finish = "stop"
            if not self._ask.keep_stop:
                return self._without_last(len(seen) - min(found))
        elif self.finish is None and not self._ask.keep_stop and self._may_begin_stop():
            return []
        out, self._held = self._held, []
        return out

    def _may_begin_stop(self) -> bool:
        return any(
            self._tail.endswith(stop[:size])
            for stop in self._ask.stop
            for size in range(1, min(len(stop), len(self._tail) + 1))
        )

    def _without_last(self, chars: int) -> list[Token]:
        """The held words, less the last ``chars`` characters of their text."""
        out: list[Token] = []
        room = sum(len(token.text) for token in self._held) - chars
        for token in self._held:
            if room <= 0:
                break
            out.append(token._replace(text=token.text[:room]))
            room -= len(token.text)
        self._held = []
        return out
