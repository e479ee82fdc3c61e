"""The budget of bytes, under any order of takers and givers."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ingress.budget import SOFT_LARGE_BYTES, Budget, share
from supervisor.settings import LimitSettings

MEMORY, DISK, LARGE = 200_000, 500_000, 40_000
SIZES = st.integers(0, 300_000)


class BudgetMachine(RuleBasedStateMachine):
    """Bodies come, where the budget sends them, and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(MEMORY, DISK, LARGE)
        self.memory: list[int] = []
        self.disk: list[int] = []

    @rule(size=SIZES)
    def comes(self, size: int) -> None:
        if self.budget.large(size):
            held = sum(self.disk)
            assert self.budget.take_disk(size) is (held + size <= DISK)
            if held + size <= DISK:
                self.disk.append(size)
        else:
            held = sum(self.memory)
            assert self.budget.take(size) is (held + size <= MEMORY)
            if held + size <= MEMORY:
                self.memory.append(size)

    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        for held, take in ((self.memory, self.budget.take), (self.disk, self.budget.take_disk)):
            if held:
                size = held.pop(data.draw(st.integers(0, len(held) - 1)))
                assert take(-size)

    @rule(data=st.data(), size=SIZES)
    def one_in_memory_grows(self, data: st.DataObject, size: int) -> None:
        if self.memory:
            at = data.draw(st.integers(0, len(self.memory) - 1))
            if self.budget.take(size - self.memory[at]):
                self.memory[at] = size

    @rule(size=SIZES)
    def the_place_follows_from_size_and_room(self, size: int) -> None:
        large = self.budget.large(size)
        assert Budget(MEMORY, 0, LARGE).large(size) is False
        if size > LARGE:
            assert large
        elif size < SOFT_LARGE_BYTES:
            assert not large
        else:
            assert large is (sum(self.memory) + size > MEMORY // 2)

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        assert self.budget.memory == sum(self.memory) <= MEMORY
        assert self.budget.disk == sum(self.disk) <= DISK


TestBudget = BudgetMachine.TestCase


def test_without_a_disk_every_body_belongs_in_memory_even_where_it_is_short() -> None:
    budget = Budget(MEMORY, 0, LARGE)
    assert budget.take(MEMORY // 2)
    assert not budget.large(SOFT_LARGE_BYTES)
    assert not budget.large(MEMORY)
    assert not budget.take_disk(1)


def test_shares_together_are_no_more_than_the_whole() -> None:
    limits = LimitSettings(buffered_bytes=1001, spool_bytes=77, unsent_bytes=10)
    each = share(limits, 4)
    assert (each.buffered_bytes, each.spool_bytes, each.unsent_bytes) == (250, 19, 2)
    restored = msgspec.structs.replace(each, buffered_bytes=1001, spool_bytes=77, unsent_bytes=10)
    assert restored == limits
