"""Searches for a nonce that is new twice: by clocks that jump, by crowded buckets, by deaths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingress import nonces
from ingress.nonces import BUCKETS, KEY_BYTES, SIZE_BYTES, SLOTS, Nonces, Verdict

#: Of two buckets.
TWO_BYTES = SIZE_BYTES // BUCKETS * 2
SEARCH = settings(max_examples=200)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two buckets: everything meets."""
    monkeypatch.setattr(nonces, "BUCKETS", 2)


def key(number: int) -> bytes:
    """Nonce number so and so; its parts look like those of its neighbours."""
    return bytes([number % 256, 1 + number // 256]) * (KEY_BYTES // 2)


def crowded(memory: bytearray) -> bytearray:
    """All but one slot of each bucket hold what never ends: here everything is overwritten."""
    for number in range(1000, 1000 + 2 * (SLOTS - 1)):
        assert Nonces(memory).take(key(number), 10**9, 1) is Verdict.NEW
    return memory


#: which nonce, and when by the clock
steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=60)
#: the last second of each nonce: it is signed together with it
untils = st.lists(st.integers(0, 20), min_size=6, max_size=6)


@SEARCH
@given(steps=steps, untils=untils)
def test_none_is_new_twice_whatever_the_clock_does(
    steps: list[tuple[int, int]], untils: list[int]
) -> None:
    memory = crowded(bytearray(TWO_BYTES))
    new: set[int] = set()
    for number, now in steps:
        verdict = Nonces(memory).take(key(number), untils[number], now)  # anew: another process
        if number in new:
            assert verdict is not Verdict.NEW
        elif verdict is Verdict.NEW:
            new.add(number)


@SEARCH
@given(count=st.integers(0, 140), lefts=st.lists(st.integers(0, 90), min_size=140, max_size=140))
def test_every_other_one_is_new_while_there_is_room(count: int, lefts: list[int]) -> None:
    at = Nonces(bytearray(TWO_BYTES))
    held = {0: 0, 1: 0}
    for number in range(count):
        now = 1000
        expected = Verdict.NEW if held[number % 2] < SLOTS else Verdict.UNKNOWN
        assert at.take(key(number), now + lefts[number], now) is expected
        held[number % 2] += expected is Verdict.NEW


def test_room_comes_back_with_time() -> None:
    at = Nonces(bytearray(TWO_BYTES))
    for number in range(0, 2 * SLOTS, 2):
        assert at.take(key(number), 1010, 1000) is Verdict.NEW
    late = key(2 * SLOTS)
    assert at.take(late, 1080, 1010) is Verdict.UNKNOWN
    assert at.take(key(0), 1010, 1010) is Verdict.USED
    assert at.take(late, 1080, 1011) is Verdict.NEW
    # one of the others is forgotten, and none of them is new although the clock went back
    for number in range(0, 2 * SLOTS, 2):
        assert at.take(key(number), 1010, 1000) is Verdict.USED
    assert at.take(key(2 * SLOTS + 2), 1081, 1011) is Verdict.NEW


def test_a_key_across_two_slots_is_not_there() -> None:
    at = Nonces(bytearray(TWO_BYTES))
    one, two = bytes(range(16)), bytes(range(16, 32))
    across = (one + two)[8:24]
    assert [at.take(each, 50, 1) for each in (one, two)] == [Verdict.NEW] * 2
    assert at.take(across, 50, 1) is Verdict.NEW
    assert at.take(across, 50, 1) is Verdict.USED


@SEARCH
@given(steps=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20), st.booleans())))
def test_one_that_has_learnt_from_another_knows_what_both_knew(
    steps: list[tuple[int, int, bool]],
) -> None:
    one, two = crowded(bytearray(TWO_BYTES)), bytearray(TWO_BYTES)
    new = {
        (number, until)
        for number, until, first in steps
        if Nonces(one if first else two).take(key(number), until, 0) is Verdict.NEW
    }
    at = Nonces(two)
    at.learn(Nonces(one))
    for number, until in new:
        assert at.take(key(number), until, 0) is not Verdict.NEW


class Death(Exception):
    pass


class Mortal(bytearray):
    """Memory whose writer dies after so many writes."""

    left = 0

    def __setitem__(self, place: object, value: object) -> None:
        if self.left == 0:
            raise Death
        self.left -= 1
        super().__setitem__(place, value)  # type: ignore[call-overload]


@SEARCH
@given(
    steps=steps,
    untils=untils,
    deaths=st.lists(st.sampled_from([0, 1, 2, 9, 9, 9]), min_size=60, max_size=60),
)
def test_a_death_while_writing_makes_none_new_twice(
    steps: list[tuple[int, int]], untils: list[int], deaths: list[int]
) -> None:
    memory = Mortal(TWO_BYTES)
    memory.left = 1000
    crowded(memory)
    answered: set[int] = set()
    for (number, now), memory.left in zip(steps, deaths):
        try:
            verdict = Nonces(memory).take(key(number), untils[number], now)
        except Death:
            continue
        if verdict is Verdict.NEW:
            assert number not in answered
            answered.add(number)


@SEARCH
@given(steps=steps, untils=untils, here=st.sets(st.integers(0, 200)), at=st.integers(0, 20))
def test_what_one_memory_knows_is_new_at_no_other_that_adopted_it(
    steps: list[tuple[int, int]], untils: list[int], here: set[int], at: int
) -> None:
    memory, other = bytearray(TWO_BYTES), Nonces(bytearray(TWO_BYTES))
    known = {
        number: untils[number]
        for number, now in steps
        if Nonces(memory).take(key(number), untils[number], now) is Verdict.NEW
    }
    for number in here:  # of its own, which may leave no room
        if other.take(key(300 + number), 10**9, 1) is Verdict.NEW:
            known[300 + number] = 10**9
    other.learn(Nonces(memory))
    other.learn(Nonces(memory))
    for number, until in known.items():
        for now in (0, at, 20):
            assert other.take(key(number), until, now) is not Verdict.NEW
