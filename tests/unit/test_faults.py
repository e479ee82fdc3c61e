"""Errors are told once at least, and no longer than their cause lasts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reporter.faults import MAX_CAUSES, MAX_CHARS, Faults


def test_a_fault_lasts_as_long_as_its_cause() -> None:
    faults = Faults()
    assert faults.text == ""
    assert faults.set("model", "killed by\nsignal 9")
    assert not faults.set("model", "killed by signal 9")
    assert faults.set("engine-key", "no answer")
    assert faults.text == "model: killed by signal 9; engine-key: no answer"
    assert faults.set("model", "exit 3")
    assert faults.text == "model: exit 3; engine-key: no answer"
    assert not faults.told(faults.snapshot())
    assert faults.clear("model")
    assert not faults.clear("model")
    assert faults.set("engine-key", "")
    assert faults.text == ""


def test_a_fault_that_passed_unheard_is_told_once() -> None:
    faults = Faults()
    faults.set("model", "a short storm")
    faults.clear("model")
    assert faults.text == "model: a short storm"
    assert faults.told(faults.snapshot())
    assert faults.text == ""


def test_a_fault_that_changes_while_it_is_told_stays() -> None:
    faults = Faults()
    faults.set("model", "one")
    sent = faults.snapshot()
    faults.set("model", "two")
    assert not faults.told(sent)
    faults.clear("model")
    assert faults.text == "model: two"


def test_a_fault_that_comes_back_is_told_as_present() -> None:
    faults = Faults()
    faults.set("model", "one")
    faults.clear("model")
    faults.set("model", "one")
    assert faults.snapshot() == (("model", "one"),)


def test_faults_are_bounded() -> None:
    faults = Faults()
    for number in range(MAX_CAUSES):
        assert faults.set(f"cause-{number}", "x" * 5_000)
    assert not faults.set("one-more", "x")
    assert len(faults.text) == MAX_CHARS
    for number in range(MAX_CAUSES):
        faults.clear(f"cause-{number}")
    for number in range(MAX_CAUSES):
        faults.set(f"other-{number}", "x")
        faults.clear(f"other-{number}")
    assert len(faults.snapshot()) == MAX_CAUSES


_WORDS = st.sampled_from(["a", "b"])
_STEPS = st.one_of(
    st.tuples(st.just("set"), _WORDS, st.sampled_from(["x", "y", ""])),
    st.tuples(st.just("clear"), _WORDS, st.just("")),
    st.tuples(st.just("send"), st.just(""), st.just("")),
    st.tuples(st.just("accepted"), st.just(""), st.just("")),
)


@given(st.lists(_STEPS, max_size=40))
def test_what_stands_is_shown_and_what_went_was_told(steps: list[tuple[str, str, str]]) -> None:
    faults = Faults()
    present: dict[str, str] = {}
    last: dict[str, str] = {}  # the latest text of each cause
    heard: set[tuple[str, str]] = set()
    sent = faults.snapshot()
    for verb, cause, text in steps:
        if verb == "set":
            faults.set(cause, text)
            if text:
                if present.get(cause) != text:
                    heard.discard((cause, text))
                present[cause] = last[cause] = text
            else:
                present.pop(cause, None)
        elif verb == "clear":
            faults.clear(cause)
            present.pop(cause, None)
        elif verb == "send":
            sent = faults.snapshot()
        else:
            faults.told(sent)
            heard |= set(sent)
        shown = dict(faults.snapshot())
        assert present.items() <= shown.items()
        for name, words in last.items():
            assert name in shown or (name, words) in heard
