"""Sessions: each is closed once, none outlives its time, and their number and bytes are bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backend_adapter import sessions as room
from backend_adapter.sessions import Session, Sessions, closing_words

LIMIT = room.OWN_BYTES * 5
names = st.sampled_from("abcdef")


def session(name: str, now: float, lifetime_s: float = 10.0, size: int = room.OWN_BYTES) -> Session:
    return Session(
        session_id=name,
        auth=b"",
        auth_data=b"x" * (size - room.OWN_BYTES),
        lifetime_s=lifetime_s,
        workload=1.0,
        request_idx=1,
        on_close_route=None,
        on_close_payload=None,
        names_itself=False,
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
        self.max_bytes, room.MAX_BYTES = room.MAX_BYTES, LIMIT

    def teardown(self) -> None:
        room.MAX_BYTES = self.max_bytes

    @rule(
        name=names,
        lifetime_s=st.floats(0.1, 50.0),
        size=st.integers(room.OWN_BYTES, room.OWN_BYTES * 2),
    )
    def is_created(self, name: str, lifetime_s: float, size: int) -> None:
        known = name in self.ends
        fits = len(self.ends) < (self.most or 99) and sum(self.sizes.values()) + size <= LIMIT
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
        assert self.sessions.size_bytes == sum(self.sizes.values()) <= LIMIT
        for each in self.sessions.open.values():
            assert each.expires_at == self.ends[each.session_id]
            assert each.expiration == pytest.approx(1e9 + each.expires_at, abs=1e-5)


class OpenDesk(Desk):
    """The same without a number."""

    most = 0


def test_what_is_closed_and_still_kept_takes_its_place() -> None:
    sessions = Sessions(0)
    assert not sessions.add(session("a", 1.0), room.MAX_BYTES)
    assert sessions.add(session("a", 1.0), room.MAX_BYTES - room.OWN_BYTES)


@pytest.mark.parametrize(
    ("payload", "names_itself", "words"),
    [
        (None, False, {"session_id": "a"}),
        (b"null", False, {"session_id": "a"}),
        (b"[1]", False, {"payload": [1], "session_id": "a"}),
        (b"{}", False, {"session_id": "a"}),
        (b'{"x": {}}', False, {"x": {}, "session_id": "a"}),
        (b'{"session_id": "my"}', True, {"session_id": "my"}),
    ],
)
def test_what_the_model_server_is_told(
    payload: bytes | None, names_itself: bool, words: dict[str, Any]
) -> None:
    closed = session("a", 1.0)
    closed.on_close_payload, closed.names_itself = payload, names_itself
    assert json.loads(closing_words(closed)) == words


TestSessions = Desk.TestCase
TestSessions.settings = settings(max_examples=100)
TestAnyNumber = OpenDesk.TestCase
TestAnyNumber.settings = settings(max_examples=50)
