"""The restart budget against a slow, obvious twin, over any history of crashes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from supervisor.restart import Budget, Policy

seconds = st.floats(min_value=0.0, max_value=2000.0, allow_nan=False)
jitters = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)


class BudgetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.granted: list[float] = []
        self.streak = 0

    @initialize(
        budget=st.integers(0, 5),
        first_delay_s=st.sampled_from([0.0, 0.25, 1.0, 50.0]),
        max_delay_s=st.sampled_from([0.5, 30.0]),
    )
    def begin(self, budget: int, first_delay_s: float, max_delay_s: float) -> None:
        self.policy = Policy(
            budget=budget,
            window_s=600.0,
            first_delay_s=first_delay_s,
            max_delay_s=max_delay_s,
            stable_s=60.0,
            start_timeout_s=10.0,
            stop_timeout_s=10.0,
        )
        self.budget = Budget(self.policy)

    @rule(passed_s=seconds, jitter=jitters, ready_for_s=st.none() | st.floats(0.0, 120.0))
    def crash(self, passed_s: float, jitter: float, ready_for_s: float | None) -> None:
        self.now += passed_s
        ready_since = None if ready_for_s is None else self.now - ready_for_s
        # The span that counts is the one that can be told from the two times.
        if ready_since is not None and self.now - ready_since >= 60.0:
            self.streak = 0
        delay_s = self.budget.crashed(self.now, ready_since, jitter)
        recent = [at for at in self.granted if self.now - at < self.policy.window_s]
        if len(recent) >= self.policy.budget:
            assert delay_s is None
            return
        assert delay_s is not None
        policy = self.policy
        base_s = 0.0
        if self.streak:
            doubled_s = policy.first_delay_s * 2.0 ** min(self.streak - 1, 60)
            base_s = min(doubled_s, policy.max_delay_s)
        assert base_s * 0.8 - 1e-9 <= delay_s <= min(base_s * 1.2 + 1e-9, policy.max_delay_s)
        self.granted.append(self.now)
        self.streak += 1

    @rule()
    def forgive(self) -> None:
        self.budget.reset()
        self.granted.clear()
        self.streak = 0

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "budget"):
            assert len(self.budget._granted) <= self.policy.budget


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=100, stateful_step_count=30)


def test_a_million_crashes_apart_never_overflow_the_delay() -> None:
    policy = Policy(
        budget=1,
        window_s=1.0,
        first_delay_s=0.25,
        max_delay_s=30.0,
        stable_s=60.0,
        start_timeout_s=10.0,
        stop_timeout_s=10.0,
    )
    budget = Budget(policy)
    delays = [budget.crashed(float(2 * i), None, 0.999) for i in range(5000)]
    assert delays[0] == 0.0
    assert delays[-1] == 30.0
