"""Fuzz one target: ``python -m tests.fuzz TARGET [--inputs N] [--seed N] [--engine atheris]``.

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

from tests.fuzz import NAMES
from tests.fuzz.guided import guided
from tests.fuzz.mutate import Mutator

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

#: Seconds that one input may take before it counts as a hang.
HANG_S = 5.0


class Finding(Exception):
    """An input that was neither taken nor refused; the text holds it."""


def fuzz(name: str, target: Target, inputs: int, seed: int) -> dict[str, object]:
    """Run that many inputs; returns the figures. Raises Finding."""
    mutator = Mutator(target.seeds, target.words, seed)
    taken, slowest_s = 0, 0.0
    began = time.monotonic()
    for number in range(inputs):
        data = mutator.next()
        at = time.perf_counter()
        try:
            taken += target.take(data)
        except BaseException as error:
            text = f"{name}, seed {seed}, input {number}: {type(error).__name__}: {error}\n{data!r}"
            raise Finding(text) from error
        took_s = time.perf_counter() - at
        if took_s > HANG_S:
            raise Finding(f"{name}, seed {seed}, input {number} took {took_s:.1f} s\n{data!r}")
        slowest_s = max(slowest_s, took_s)
    gc.collect()
    return {
        "target": name,
        "seed": seed,
        "inputs": inputs,
        "taken": taken,
        "refused": inputs - taken,
        "slowest_ms": round(slowest_s * 1000, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz one target.")
    parser.add_argument("target", choices=sorted(NAMES))
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    args = parser.parse_args()
    if args.engine == "atheris":
        return guided(args.target, args.inputs, args.seed, HANG_S)
    from tests.fuzz.targets import targets  # not before the other engine could instrument it

    try:
        print(json.dumps(fuzz(args.target, targets()[args.target], args.inputs, args.seed)))
    except Finding as finding:
        print(finding, file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
