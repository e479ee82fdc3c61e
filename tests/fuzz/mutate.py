"""Inputs of a fuzzer: seeds, and what chance makes of them. The same seed makes the same inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


class Mutator:
    """Makes inputs from ``seeds``; ``words`` are what the format is made of."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> None:
        self._seeds = seeds
        self._words = words
        self._random = random.Random(seed)
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._replace, self._insert_word, self._insert_word, self._remove,
            self._repeat, self._splice,
        )  # fmt: skip

    def next(self) -> bytes:
        """One input: mostly a seed with a few changes, at times nothing but noise."""
        chance = self._random
        if chance.random() < 0.02:
            return chance.randbytes(chance.randrange(200))
        data = bytearray(chance.choice(self._seeds))
        for _ in range(1 + int(chance.expovariate(0.6))):
            chance.choice(self._ways)(data)
        return bytes(data)

    def _place(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _replace(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] = self._random.randrange(256)

    def _insert_word(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._random.choice(self._words)

    def _remove(self, data: bytearray) -> None:
        at = self._place(data)
        del data[at : at + self._random.randrange(1, 20)]

    def _repeat(self, data: bytearray) -> None:
        at, size = self._place(data), self._random.randrange(1, 30)
        data[at:at] = data[at : at + size] * self._random.choice((1, 2, 50))

    def _splice(self, data: bytearray) -> None:
        other = self._random.choice(self._seeds)
        data[self._place(data) :] = other[self._random.randrange(len(other) + 1) :]
