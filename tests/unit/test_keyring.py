"""The keyring: when the engine's key is fetched."""

from __future__ import annotations

import math

from reporter.keyring import MAX_PAUSE_S, REFRESH_EVERY_S, SUSPECT_EVERY_S, Keyring


def test_an_unknown_key_is_fetched_from_each_address_with_growing_pauses() -> None:
    keyring = Keyring(["http://a", "http://b"])
    now = 0.0
    fetches = []
    pauses = []
    for _ in range(9):
        now = max(now, keyring.wake_at())
        fetches.append(keyring.step(now))
        assert keyring.step(now) is None  # one in flight
        assert keyring.wake_at() == math.inf
        keyring.failed(now)
        pauses.append(round(keyring.wake_at() - now, 3))
    assert fetches[:3] == ["http://a", "http://b", "http://a"]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
    keyring.suspect()  # everybody knows that there is none: no reason to hurry
    assert round(keyring.wake_at() - now, 3) == MAX_PAUSE_S


def test_a_known_key_is_refreshed_hourly_and_announced_when_it_changes() -> None:
    keyring = Keyring(["http://a"])
    assert keyring.step(0.0) == "http://a"
    assert keyring.fetched("one", 1.0)
    assert keyring.step(1.0 + REFRESH_EVERY_S - 1.0) is None
    assert keyring.step(1.0 + REFRESH_EVERY_S) == "http://a"
    assert not keyring.fetched("one", 5000.0)
    keyring.step(5000.0 + REFRESH_EVERY_S)
    assert keyring.fetched("two", 9000.0)
    assert keyring.pem == "two"


def test_a_suspect_key_is_fetched_at_most_once_per_five_seconds() -> None:
    keyring = Keyring(["http://a"])
    keyring.step(0.0)
    keyring.fetched("one", 0.0)
    keyring.suspect()
    keyring.suspect()
    assert keyring.step(SUSPECT_EVERY_S - 0.1) is None
    assert keyring.step(SUSPECT_EVERY_S) == "http://a"
    keyring.failed(SUSPECT_EVERY_S)
    assert keyring.pem == "one"  # a failed fetch forgets nothing
    assert keyring.wake_at() == 2 * SUSPECT_EVERY_S
    keyring.step(100.0)
    keyring.fetched("one", 100.0)
    keyring.suspect()
    assert keyring.step(500.0) == "http://a"


def test_without_an_address_nothing_is_fetched() -> None:
    keyring = Keyring([])
    assert keyring.wake_at() == math.inf
    assert keyring.step(10.0) is None


def test_the_key_of_an_engine_that_was_started_anew_is_fetched_at_once() -> None:
    keyring = Keyring(["http://a"])
    keyring.step(0.0)
    keyring.fetched("one", 0.0)
    keyring.hasten()
    assert keyring.step(0.1) == "http://a"
    assert keyring.fetched("two", 0.2)
