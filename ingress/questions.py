"""Pure: the requests whose worker.py is being asked what they amount to.

Law: every question that was taken leaves exactly once: answered, dropped because its client left,
or expired. A session with the hook host may end at any moment; what is unanswered is asked again in
the next one, unchanged.

Bounds: who asks counts the open ones against its own limit; nobody waits longer than ``timeout_s``.
This module knows neither HTTP nor sockets nor clocks.
"""

from __future__ import annotations

from typing import Any

from backend_adapter.hook_messages import Prepare
from ingress.routes import Route

#: Sessions with the hook host that one question may be asked in.
MAX_ASKED = 2


class Question:
    """One request that waits for its answer."""

    __slots__ = (
        "asked",
        "asked_at",
        "exchange",
        "message",
        "reqnum",
        "request_idx",
        "route",
        "session_id",
    )

    def __init__(
        self,
        message: Prepare,
        exchange: Any,
        route: Route,
        request_idx: int,
        reqnum: int | None,
        session_id: str,
        now: float,
    ) -> None:
        self.message = message
        self.exchange = exchange
        self.route = route
        self.request_idx = request_idx
        self.reqnum = reqnum
        self.session_id = session_id
        self.asked_at = now
        #: sessions that it was asked in
        self.asked = 0


class Questions:
    """Every open question of this process, by id, oldest first.

    ``first_id``: random, so that an answer to a question of the process before this one, which had
    the same name, is nobody's answer here.
    """

    def __init__(self, timeout_s: float, first_id: int) -> None:
        self.timeout_s = timeout_s
        self._next = first_id
        self.open: dict[int, Question] = {}

    def next_id(self) -> int:
        """The id of the next question."""
        self._next += 1
        return self._next

    def take(self, question: Question) -> None:
        """Wait for its answer."""
        self.open[question.message.id] = question

    def settle(self, question_id: int) -> Question | None:
        """Its one end. None: it had ended already."""
        return self.open.pop(question_id, None)

    def again(self) -> tuple[list[Prepare], list[Question]]:
        """A session began: what to ask, oldest first; and what was settled, because it was asked
        ``MAX_ASKED`` times in sessions that ended: it may be what ends them.
        """
        spent = [each for each in self.open.values() if each.asked >= MAX_ASKED]
        for question in spent:
            del self.open[question.message.id]
        for question in self.open.values():
            question.asked += 1
        return [question.message for question in self.open.values()], spent

    def give_up(self) -> list[Question]:
        """Settle and return all of them: the process ends."""
        left = list(self.open.values())
        self.open.clear()
        return left

    def expire(self, now: float) -> list[Question]:
        """Settle and return those that have waited too long."""
        late = []
        for question in self.open.values():
            if now - question.asked_at <= self.timeout_s:
                break
            late.append(question)
        for question in late:
            del self.open[question.message.id]
        return late
