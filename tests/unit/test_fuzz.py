"""The fuzzers find nothing in a thousand inputs, and would find what is there."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import Finding, fuzz
from tests.fuzz.targets import Target, targets

TARGETS = targets()


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
