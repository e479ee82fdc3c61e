"""Sessions: each is closed once, none outlives its time, and their number and bytes are bounded."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backend_adapter import sessions as room
from backend_adapter.sessions import Session, Sessions

names = st.sampled_from("abcdef")


def session(name: str, now: float, lifetime_s: float = 10.0, size: int = 10) -> Session:
    return Session(
        session_id=name,
        auth=b"x" * size,
        auth_data=b"",
        lifetime_s=lifetime_s,
        workload=1.0,
        request_idx=1,
        on_close_route=None,
        on_close_payload=None,
        on_close_body=b"",
        created_at=1e9 + now,
        opened_at=now,
        expires_at=now + lifetime_s,
    )


class Desk(RuleBasedStateMachine):
    """What is open, by the books of the machine."""

    most = 3

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.sessions = Sessions(self.most)
        self.ends: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        self.max_bytes, room.MAX_BYTES = room.MAX_BYTES, 100

    def teardown(self) -> None:
        room.MAX_BYTES = self.max_bytes

    @rule(name=names, lifetime_s=st.floats(0.1, 50.0), size=st.integers(0, 60))
    def is_created(self, name: str, lifetime_s: float, size: int) -> None:
        known = name in self.ends
        fits = len(self.ends) < (self.most or 99) and sum(self.sizes.values()) + size <= 100
        assert self.sessions.add(session(name, self.now, lifetime_s, size)) == (known or fits)
        if fits and not known:
            self.ends[name], self.sizes[name] = self.now + lifetime_s, size

    @rule(name=names)
    def is_used(self, name: str) -> None:
        used = self.sessions.use(name)
        assert (used is not None) == (name in self.ends)
        if used is not None:
            self.ends[name] += used.lifetime_s

    @rule(name=names)
    def ends_now(self, name: str) -> None:
        assert (self.sessions.remove(name) is not None) == (name in self.ends)
        self.ends.pop(name, None), self.sizes.pop(name, None)

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        over = {each.session_id for each in self.sessions.expired(self.now)}
        assert over == {name for name, end in self.ends.items() if self.now > end}
        for name in over:
            assert self.sessions.remove(name) is not None
            del self.ends[name], self.sizes[name]

    @invariant()
    def the_books_agree(self) -> None:
        assert self.sessions.open.keys() == self.ends.keys()
        assert self.sessions.size_bytes == sum(self.sizes.values()) <= 100
        for each in self.sessions.open.values():
            assert each.expires_at == self.ends[each.session_id]
            assert each.expiration == pytest.approx(1e9 + each.expires_at, abs=1e-5)


class OpenDesk(Desk):
    """The same without a number."""

    most = 0


TestSessions = Desk.TestCase
TestSessions.settings = settings(max_examples=100, deadline=None)
TestAnyNumber = OpenDesk.TestCase
TestAnyNumber.settings = settings(max_examples=50, deadline=None)
