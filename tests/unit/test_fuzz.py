"""The fuzzers find nothing in a thousand inputs, and would find what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.fuzz import NAMES
from tests.fuzz.__main__ import Finding, fuzz
from tests.fuzz.targets import Target, targets
from tests.kit.wait import DEADLINE_S

TARGETS = targets()


def test_every_target_can_be_named() -> None:
    assert sorted(TARGETS) == sorted(NAMES)


@pytest.mark.skipif(not find_spec("atheris"), reason="pip install atheris for the guided engine")
@pytest.mark.parametrize("name", NAMES)
def test_the_guided_engine(name: str) -> None:
    argv = [sys.executable, "-m", "tests.fuzz", name, "--engine", "atheris", "--inputs", "300"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=True)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert (told["target"], told["inputs"]) == (name, 300)


@pytest.mark.parametrize("name", TARGETS)
def test_a_thousand_inputs(name: str) -> None:
    told = fuzz(name, TARGETS[name], 1000, seed=7)
    assert told["inputs"] == 1000
    assert told["taken"] and told["refused"], (
        "seeds that are all refused, or all taken, test little"
    )


def test_what_is_neither_taken_nor_refused_is_found() -> None:
    def fragile(data: bytes) -> bool:
        return data[0] < 300

    with pytest.raises(Finding, match="IndexError"):
        fuzz("fragile", Target([b"a"], [b"b"], fragile), 5000, seed=1)
