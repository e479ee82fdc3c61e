"""Where generations are worked on: a number of slots, and a pace.

Responsible for who may generate now (first come, first served) and for how quickly words come.
Its law: a slot is free again the moment its generation ends, is cancelled, or fails. It must not
know about HTTP or faults.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from supervisor.demo.generation import Ask, Generation
from supervisor.demo.markov import Markov, Token
from supervisor.demo.tally import Tally

#: Steps between two looks at the event loop when words come as fast as they can.
_BREATH = 32

#: How far a stream that was held up may hurry to catch up with its pace.
_HURRY_S = 0.25


class Desk:
    """``slots`` generations at once, each at ``tokens_per_s`` words a second (0: no limit), the
    first word ``first_token_s`` seconds later."""

    def __init__(
        self,
        model: Markov,
        tally: Tally,
        *,
        slots: int,
        tokens_per_s: float,
        first_token_s: float,
    ) -> None:
        self._model = model
        self._tally = tally
        self._slots = asyncio.Semaphore(slots)
        self._step_s = 1.0 / tokens_per_s if tokens_per_s else 0.0
        self._first_token_s = first_token_s
        self.waiting = 0
        self.running = 0

    @asynccontextmanager
    async def slot(self, ask: Ask) -> AsyncIterator[Generation]:
        """Wait for a slot; the generation that holds it."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self._tally.generations += 1
        try:
            yield Generation(self._model, ask, random.Random(ask.seed).random)
        finally:
            self.running -= 1
            self._slots.release()

    async def steps(self, generation: Generation) -> AsyncIterator[list[Token]]:
        """The words of each step, at the pace, until the generation is over."""
        await asyncio.sleep(self._first_token_s)
        due = asyncio.get_running_loop().time()
        while generation.finish is None:
            due = await self._paced(due, generation.made)
            words = generation.step()
            self._tally.served_tokens += 1
            yield words

    async def _paced(self, due: float, made: int) -> float:
        """Wait until the next word is due; when that one was."""
        if not self._step_s:
            if made % _BREATH == 0:
                await asyncio.sleep(0)
            return due
        now = asyncio.get_running_loop().time()
        due = max(due + self._step_s, now - _HURRY_S)
        await asyncio.sleep(max(0.0, due - now))
        return due
