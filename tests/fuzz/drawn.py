"""The engine that draws inputs from what a format is made of (hypothesis), for the same targets.

A finding is made simpler for as long as it stays one: it is told with the fewest pieces and changes
that make it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

#: Inputs of one search: hypothesis remembers all that it drew in one.
SEARCH = 10_000
_Edit = tuple[int, int, bytes]


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Seeds with a few changes, and words, noise and pieces of seeds in any order."""
    seeds = st.sampled_from(target.seeds)
    places = st.integers(0, max(len(data) for data in target.seeds))
    noise = st.binary(max_size=40)
    piece = noise | st.sampled_from(target.words) | st.builds(_part, seeds, places, places)
    edits = st.lists(st.tuples(places, st.integers(0, 20), piece), max_size=3)
    return st.lists(piece, max_size=4).map(b"".join) | st.builds(_edited, seeds, edits)


def draw(target: Target, count: int, start: int, take: Callable[[bytes], None]) -> None:
    """Hand ``take`` that many inputs; what it raises ends it, raised again by the simplest input.

    Args:
        start: the same one draws the same inputs.
    """

    def one(data: bytes) -> None:
        take(data)  # hypothesis looks at the code of what it calls: no built-in would do

    for done in range(0, count, SEARCH):
        search = settings(
            max_examples=min(SEARCH, count - done),
            phases=(Phase.generate, Phase.shrink),
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        seed(start * 1_000_000 + done)(search(given(inputs(target))(one)))()


def _part(data: bytes, start: int, size: int) -> bytes:
    return data[start : start + size]


def _edited(data: bytes, edits: list[_Edit]) -> bytes:
    """Each edit puts a piece in place of what stands there."""
    for at, size, piece in edits:
        data = data[:at] + piece + data[at + size :]
    return data
