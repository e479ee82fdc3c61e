"""Each question that was taken leaves exactly once, whatever happens."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backend_adapter.hook_messages import Prepare
from ingress.questions import MAX_ASKED, Question, Questions

TIMEOUT_S = 10.0


class Asking(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.questions = Questions(TIMEOUT_S, 1000)
        self.taken: dict[int, float] = {}
        self.ended: set[int] = set()
        self.asked: dict[int, int] = {}

    @rule()
    def ask(self) -> None:
        number = self.questions.next_id()
        assert number not in self.taken
        message = Prepare(number, "/a", b"{}")
        self.questions.take(Question(message, object(), cast(Any, None), 1, None, "", self.now))
        self.taken[number] = self.now
        self.asked[number] = 0

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def an_answer_or_a_departure(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.taken)))
        settled = self.questions.settle(number)
        assert (settled is None) == (number in self.ended)
        self.ended.add(number)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for late in self.questions.expire(self.now):
            number = late.message.id
            assert number not in self.ended
            assert self.now - self.taken[number] > TIMEOUT_S
            self.ended.add(number)
        for number in self.taken.keys() - self.ended:
            assert self.now - self.taken[number] <= TIMEOUT_S

    @rule()
    def the_process_ends(self) -> None:
        for left in self.questions.give_up():
            assert left.message.id not in self.ended
            self.ended.add(left.message.id)

    @rule()
    def a_session_begins(self) -> None:
        """Each is asked in two sessions that end, and in no third one."""
        messages, spent = self.questions.again()
        for question in spent:
            assert self.asked[question.message.id] == MAX_ASKED
            self.ended.add(question.message.id)
        assert [message.id for message in messages] == sorted(self.taken.keys() - self.ended)
        for message in messages:
            self.asked[message.id] += 1
            assert self.asked[message.id] <= MAX_ASKED

    @invariant()
    def what_is_open_is_known(self) -> None:
        assert list(self.questions.open) == sorted(self.taken.keys() - self.ended)


TestAsking = Asking.TestCase
TestAsking.settings = settings(max_examples=60, stateful_step_count=30)
