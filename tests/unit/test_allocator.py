"""The C library keeps some of what is freed, unless a person has told it otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Pages that are fetched anew while blocks of a large answer's size come and go, per block.
PROGRAM = """
import os, resource
from supervisor.allocator import keep_some
keep_some(os.environ)
def turn():
    blocks = [b"%d" % n * 300_000 for n in range(8)]
for _ in range(3):
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    turn()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 400)
"""


@pytest.mark.parametrize(("told", "least", "most"), [("", 0.0, 5.0), ("300000", 20.0, 80.0)])
def test_freed_memory_is_kept_for_the_next_answer(told: str, least: float, most: float) -> None:
    environ = dict(os.environ)
    if told:
        environ["MALLOC_TRIM_THRESHOLD_"] = told
    printed = subprocess.check_output([sys.executable, "-c", PROGRAM], env=environ)
    assert least <= float(printed) <= most
