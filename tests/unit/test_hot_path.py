"""What one small request costs, in bytecodes: the same on every machine, so it cannot flake."""

from __future__ import annotations

import sys

import pytest
import uvloop

from tests.bench.hot_path import Rig, opcodes

#: (least, most) bytecodes for a request in a batch of 32, by step; one interpreter's, as each
#: version has other bytecodes. Whether the capacity is just being counted makes some 220.
BANDS = {
    "ingress takes": (700, 1060),
    "ingress sends": (2, 8),
    "adapter takes": (400, 740),
    "adapter hears the model": (400, 900),
    "adapter sends": (2, 8),
    "ingress answers": (250, 430),
    "ingress accounts": (2, 12),
}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the bands are those of Python 3.11")
def test_a_small_request_executes_so_many_bytecodes() -> None:
    async def count() -> dict[str, float]:
        rig = Rig(32)
        try:
            for _ in range(3):
                rig.once()
            rig.check()
            return {name: sum(found.values()) / 32 for name, found in opcodes(rig).items()}
        finally:
            rig.close()

    counted = uvloop.run(count())
    assert counted.keys() == BANDS.keys()
    for name, (least, most) in BANDS.items():
        assert least <= counted[name] <= most, (name, counted)


def test_what_waits_costs_a_request_nothing() -> None:
    """Behind 10,000 jobs of a blocked lane as behind 10: the fewer, the better, but never more."""

    async def count(waiting: int) -> float:
        rig = Rig(32, waiting)
        try:
            for _ in range(3):
                rig.once()
            return sum(sum(found.values()) for found in opcodes(rig).values())
        finally:
            rig.close()

    few, many = uvloop.run(count(10)), uvloop.run(count(10_000))
    assert many <= few * 1.1  # one of them may have counted the capacity meanwhile
