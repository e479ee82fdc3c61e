"""Fuzz one target: ``python -m tests.fuzz TARGET [--inputs N] [--seed N] [--engine ENGINE]``.

The engines: ``mutate`` changes seeds at random, fast; ``hypothesis`` draws from what the format is
made of, and makes a finding simple; ``atheris`` follows the branches that an input takes.

Prints one line of JSON: inputs, how many were taken and refused, the slowest one, memory. A finding
ends it with exit status 1, the input and where it came from.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from typing import TYPE_CHECKING

from tests.fuzz import ENGINES, NAMES
from tests.fuzz.drawn import draw
from tests.fuzz.guided import guided
from tests.fuzz.mutate import Mutator

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

#: Seconds of CPU that one input may take; waiting for a turn on a busy machine is no hang.
HANG_S = 5.0


class Finding(Exception):
    """An input that was neither taken nor refused; the text holds it."""


class Run:
    """Inputs of one target, handed to it one after the other."""

    def __init__(self, name: str, target: Target, engine: str, seed: int) -> None:
        self._name = name
        self._target = target
        self._engine = engine
        self._seed = seed
        self._inputs = self._taken = 0
        self._slowest_s = 0.0
        self._began = time.monotonic()

    def take(self, data: bytes) -> None:
        """One input. Raises Finding."""
        at = time.process_time()
        try:
            taken = self._target.take(data)
        except BaseException as error:
            raise Finding(f"{self._where()}: {type(error).__name__}: {error}\n{data!r}") from error
        took_s = time.process_time() - at
        if took_s > HANG_S:
            raise Finding(f"{self._where()} took {took_s:.1f} s\n{data!r}")
        self._inputs += 1
        self._taken += taken
        self._slowest_s = max(self._slowest_s, took_s)

    def _where(self) -> str:
        return f"{self._name}, {self._engine}, seed {self._seed}, input {self._inputs}"

    def figures(self) -> dict[str, object]:
        """So far."""
        gc.collect()
        return {
            "target": self._name,
            "engine": self._engine,
            "seed": self._seed,
            "inputs": self._inputs,
            "taken": self._taken,
            "refused": self._inputs - self._taken,
            "slowest_ms": round(self._slowest_s * 1000, 2),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "seconds": round(time.monotonic() - self._began, 1),
        }


def fuzz(
    name: str, target: Target, inputs: int, seed: int, engine: str = "mutate"
) -> dict[str, object]:
    """Run that many inputs; returns the figures. Raises Finding."""
    run = Run(name, target, engine, seed)
    if engine == "hypothesis":
        draw(target, inputs, seed, run.take)
    else:
        mutator = Mutator(target.seeds, target.words, seed)
        for _ in range(inputs):
            run.take(mutator.next())
    return run.figures()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz one target.")
    parser.add_argument("target", choices=sorted(NAMES))
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    args = parser.parse_args()
    if args.engine == "atheris":
        return guided(args.target, args.inputs, args.seed, HANG_S)
    from tests.fuzz.targets import targets  # not before the other engine could instrument it

    try:
        target = targets()[args.target]
        print(json.dumps(fuzz(args.target, target, args.inputs, args.seed, args.engine)))
    except Finding as finding:
        print(finding, file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
