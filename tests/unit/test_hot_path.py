"""What one small request costs, in bytecodes: the same on every machine, so it cannot flake."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

import pytest
import uvloop

from tests.bench.hot_path import Rig, opcodes

#: (least, most) bytecodes for a request in a batch of 32, by step; one interpreter's, as each
#: version has other bytecodes. Whether the capacity is just being counted makes some 220.
BANDS = {
    "ingress takes": (950, 1060),
    "ingress sends": (3, 6),
    "adapter takes": (660, 740),
    "adapter hears the model": (600, 930),
    "adapter sends": (3, 6),
    "ingress answers": (370, 425),
    "ingress accounts": (3, 9),
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


#: What no small request may call: methods of the loop, methods of patterns, and modules.
TASKS = {"create_task", "call_later", "call_at", "run_in_executor"}
FORBIDDEN = {
    "match",
    "fullmatch",
    "search",
    "finditer",
    "findall",
    "sub",
    "logging",
    "asyncio.tasks",
}


def test_a_small_request_makes_no_task_timer_log_call_or_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, arg: object) -> None:
        if event == "c_call":
            seen[str(getattr(arg, "__name__", ""))] += 1
        elif event == "call":
            seen[str(frame.f_globals.get("__name__"))] += 1

    def noted(name: str) -> Callable[..., None]:
        return lambda *args, **more: seen.update([name])

    async def count() -> None:
        rig = Rig(32)
        try:
            for _ in range(3):
                rig.once()
            with monkeypatch.context() as patched:
                for name in TASKS:
                    patched.setattr(asyncio.BaseEventLoop, name, noted(name))
                before = sys.getprofile()
                sys.setprofile(watch)
                try:
                    rig.once()
                finally:
                    sys.setprofile(before)
            rig.check()
        finally:
            rig.close()

    asyncio.run(count())
    assert seen["ingress.connection"] >= 32, "it was watched"
    assert not seen.keys() & (FORBIDDEN | TASKS), seen
