"""A session's rules one by one; ``properties/test_link_machine.py`` holds them together."""

from __future__ import annotations

import itertools

import pytest

from supervisor import link
from supervisor.link import DEAD_AFTER_S, GREET_EVERY_S, KEEPALIVE_S, ClientLink, ServerLink, judge


def client(first_epoch: int = 100) -> ClientLink:
    return ClientLink(itertools.count(first_epoch).__next__)


def client_up(received: int = 0) -> ClientLink:
    """Epoch 100, with the server's 9."""
    end = client()
    assert end.receive((9, 100, 0), 0.0) == "up"
    for seq in range(1, received + 1):
        assert end.receive((9, 100, seq), 0.0) == "deliver"
    return end


@pytest.mark.parametrize(
    ("header", "verdict"),
    [
        ((9, 100, 0), "up"),
        ((9, 99, 0), "ignore"),  # meant for the process before us
        ((9, 100, 1), "ignore"),  # a batch whose welcome was lost
        ((0, 100, 0), "ignore"),  # a refusal
    ],
)
def test_a_client_without_a_session(header: link.Header, verdict: str) -> None:
    end = client()
    assert end.receive(header, 1.0) == verdict
    assert end.up == (verdict == "up")
    assert end.epoch == 100


@pytest.mark.parametrize(
    ("header", "verdict"),
    [
        ((9, 100, 4), "deliver"),
        ((9, 100, 0), "ignore"),  # the welcome again
        ((9, 99, 4), "ignore"),
        ((9, 100, 5), "reset"),  # one is missing
        ((9, 100, 3), "reset"),  # one came twice
        ((8, 100, 4), "reset"),  # another server
        ((8, 100, 0), "reset"),
        ((0, 100, 0), "reset"),  # the server does not know us
    ],
)
def test_a_client_with_a_session(header: link.Header, verdict: str) -> None:
    end = client_up(received=3)
    assert end.receive(header, 1.0) == verdict
    assert end.up == (verdict != "reset")
    assert end.epoch == (101 if verdict == "reset" else 100)


def test_after_a_reset_everything_begins_anew() -> None:
    end = client_up(received=3)
    assert end.wrap() == (100, 9, 1)
    end.reset()
    assert end.greeting == (101, 0, 0)
    assert end.receive((9, 100, 4), 0.0) == "ignore"
    assert end.receive((10, 101, 0), 0.0) == "up"
    assert end.wrap() == (101, 10, 1)
    assert end.receive((10, 101, 1), 0.0) == "deliver"


@pytest.mark.parametrize(
    ("header", "verdict", "alone"),
    [
        ((7, 0, 0), "welcome", "open"),
        ((8, 0, 0), "open", "open"),
        ((7, 5, 1), "deliver", "refuse"),
        ((7, 5, 2), "break", "refuse"),
        ((7, 5, 0), "break", "refuse"),
        ((7, 4, 1), "break", "refuse"),
        ((8, 5, 1), "refuse", "refuse"),
    ],
)
def test_a_server_judges(header: link.Header, verdict: str, alone: str) -> None:
    assert judge(ServerLink(5, 7, 0.0), header, 1.0) == verdict
    assert judge(None, header, 1.0) == alone
    assert link.refusal(header) == (0, header[0], 0)


def test_a_server_numbers_its_batches() -> None:
    end = ServerLink(5, 7, 0.0)
    assert end.welcome == (5, 7, 0)
    assert [end.wrap(), end.wrap()] == [(5, 7, 1), (5, 7, 2)]


def test_a_client_greets_until_it_is_welcome() -> None:
    end = client()
    assert end.tick(0.0) == "greet"
    assert end.tick(GREET_EVERY_S / 2) == ""
    assert end.tick(GREET_EVERY_S) == "greet"


def test_a_client_asks_for_a_sign_of_life_however_much_it_sends() -> None:
    """A model that thinks for ten seconds answers nothing, while new jobs keep being submitted."""
    end, server, now, asked = client_up(), ServerLink(9, 100, 0.0), 0.0, 0
    while now < 4 * DEAD_AFTER_S:
        now += 0.05
        due = end.tick(now)
        assert due in ("", "keepalive")
        header = end.wrap()
        assert server.receive(header, now)
        if due == "keepalive":
            asked += 1
            assert end.receive(server.wrap(), now) == "deliver"
    assert asked >= 4 * DEAD_AFTER_S / (KEEPALIVE_S + 0.05) - 1


def test_who_is_mute_is_dead() -> None:
    end, server = client_up(), ServerLink(9, 100, 0.0)
    assert end.tick(DEAD_AFTER_S) == "keepalive"
    assert not server.dead(DEAD_AFTER_S)
    assert end.tick(DEAD_AFTER_S + 0.01) == "reset"
    assert server.dead(DEAD_AFTER_S + 0.01)
    assert end.tick(DEAD_AFTER_S + 0.01) == "greet"
    assert server.receive((100, 9, 1), DEAD_AFTER_S)
    assert not server.dead(2 * DEAD_AFTER_S)


def test_who_slept_does_not_call_others_mute() -> None:
    """All processes of a machine that was paused wake at once, with words that lie unread."""
    end, server, now = client_up(), ServerLink(9, 100, 0.0), 3 * DEAD_AFTER_S
    end.slept(now)
    server.slept(now)
    assert end.tick(now) == "keepalive"
    assert not server.dead(now)
    assert end.tick(now + DEAD_AFTER_S + 0.01) == "reset"
    assert server.dead(now + DEAD_AFTER_S + 0.01)


def test_a_greeting_that_comes_too_late_opens_a_session_that_nobody_mistakes() -> None:
    """The server gave a session up; the client did not notice, and its second greeting arrives."""
    draw = itertools.count(500).__next__
    end = client()
    first = ServerLink(draw(), end.epoch, 0.0)
    assert end.receive(first.welcome, 0.0) == "up"
    assert judge(None, end.greeting, 6.0) == "open"
    second = ServerLink(draw(), end.epoch, 6.0)
    assert end.receive(second.wrap(), 6.0) == "reset"
