"""The fuzzers find nothing in a few inputs, and would find what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.fuzz import NAMES
from tests.fuzz.__main__ import Finding, fuzz
from tests.fuzz.drawn import draw
from tests.fuzz.targets import Target, targets
from tests.kit.wait import DEADLINE_S

TARGETS = targets()


def test_every_target_can_be_named() -> None:
    assert sorted(TARGETS) == sorted(NAMES)


@pytest.mark.skipif(not find_spec("atheris"), reason="the extra `fuzz` is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_the_guided_engine(name: str) -> None:
    argv = [sys.executable, "-m", "tests.fuzz", name, "--engine", "atheris", "--inputs", "300"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=True)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert (told["target"], told["inputs"]) == (name, 300)


@pytest.mark.parametrize(("engine", "inputs"), [("mutate", 1000), ("hypothesis", 150)])
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str, engine: str, inputs: int) -> None:
    told = fuzz(name, TARGETS[name], inputs, seed=7, engine=engine)
    assert (told["inputs"], told["engine"]) == (inputs, engine)
    assert told["taken"] and told["refused"], (
        "seeds that are all refused, or all taken, test little"
    )


def test_what_is_neither_taken_nor_refused_is_found() -> None:
    def fragile(data: bytes) -> bool:
        return data[0] < 300

    with pytest.raises(Finding, match="IndexError"):
        fuzz("fragile", Target([b"a"], [b"b"], fragile), 5000, seed=1)


def test_what_hypothesis_finds_is_told_with_the_fewest_changes() -> None:
    def fragile(data: bytes) -> bool:
        if b"<!" in data:
            raise ValueError("a mark")
        return True

    target = Target([b"[1, 2, 3, 4]", b"[]"], [b"<!", b"]"], fragile)
    with pytest.raises(Finding, match=r"ValueError: a mark\nb'<!'"):
        fuzz("fragile", target, 5000, seed=1, engine="hypothesis")


def test_the_same_seed_draws_the_same_inputs() -> None:
    def drawn(start: int) -> list[bytes]:
        seen: list[bytes] = []
        draw(TARGETS["envelope"], 50, start, seen.append)
        return seen

    assert drawn(3) == drawn(3) != drawn(4)
