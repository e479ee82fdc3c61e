"""Searches for a text of a client's that is logged because user code put it into an exception."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingress.hooks.blame import MAX_TEXTS, MIN_TEXT, told

SEARCH = settings(max_examples=150)
letters = st.characters(codec="utf-8", categories=("L", "N", "Zs", "P"), exclude_characters="*")
texts = st.text(letters | st.sampled_from("\"'\\\n/"), min_size=MIN_TEXT, max_size=40)
ways = st.sampled_from(
    [
        "{text}",
        "KeyError: {text!r}",
        "{cut}…",
        "…{end}",
        "{json}",
        "{utf8}",
        "{payload}",
        "'{text}' '{text}'",
    ]
)


def raised(message: str, cause: str = "") -> BaseException:
    """An exception with a trace, as user code raises it."""
    try:
        try:
            if cause:
                raise ValueError(cause)
        finally:
            raise RuntimeError(message)
    except RuntimeError as error:
        return error


@SEARCH
@given(text=texts, way=ways, short=st.integers(MIN_TEXT, 40), other=texts)
def test_no_text_of_the_client_is_logged(text: str, way: str, short: int, other: str) -> None:
    payload = {"prompt": text, "more": [{"deep": other}, 5, None], "n": 1}
    message = way.format(
        text=text,
        cut=text[:short],
        end=text[-short:],
        json=json.dumps(text),
        utf8=json.dumps(text, ensure_ascii=False),
        payload=payload,
    )
    log = told(raised(message, other), json.dumps({"payload": payload}).encode())
    assert "RuntimeError" in log and "in raised" in log
    for each in (text, other):
        utf8 = json.dumps(each, ensure_ascii=False)[1:-1]
        for part in (
            each,
            each[:MIN_TEXT],
            each[-MIN_TEXT:],
            utf8,
            utf8[:MIN_TEXT],
            utf8[-MIN_TEXT:],
        ):
            assert part not in log


def test_the_codes_own_words_stay() -> None:
    body = json.dumps({"payload": {"prompt": "a long secret text", "n": "eight"}}).encode()
    log = told(raised("'temperature' is no number, 'prompt' is; eight"), body)
    assert log.endswith("RuntimeError: 'temperature' is no number, 'prompt' is; eight")
    assert "Traceback (most recent call last)" in log
    assert told(raised("it is gone"), b"").endswith("RuntimeError: it is gone")


def test_headers_are_the_clients_too() -> None:
    log = told(raised("{'x-api-key': 'sk-harbour-1'}"), b"{}", ["sk-harbour-1"])
    assert log.endswith("RuntimeError: {'x-api-key': '***'}")


@pytest.mark.parametrize(
    "body",
    [
        b"no JSON",
        b"[" * 100_000,
        json.dumps([f"text number {n}" for n in range(MAX_TEXTS + 1)]).encode(),
    ],
)
def test_where_texts_cannot_be_looked_for_no_message_is_logged(body: bytes) -> None:
    log = told(raised("k3y-of-somebody"), body)
    assert "k3y" not in log.replace('told(raised("k3y-of-somebody"), body)', "")
    assert "RuntimeError (its message may hold" in log


def test_a_trace_is_bounded() -> None:
    def deep(left: int) -> Any:
        return deep(left - 1) if left else raised("x" * 100_000)

    assert len(told(deep(50), b"")) < 20_000


def test_the_middle_of_a_long_text_is_the_clients_too() -> None:
    text = "".join(f"{number:05} " for number in range(9_000))
    log = told(raised(f"it is too long: {text[:20_000]}"), json.dumps({"prompt": text}).encode())
    assert "in raised" in log and log.endswith(
        "RuntimeError (its message may hold what the client sent)"
    )
    assert "00800" not in log
    for part in (text[:10_000], text[-10_000:]):
        log = told(raised(f"it is too long: {part}…"), json.dumps({"prompt": text}).encode())
        assert log.endswith("RuntimeError: it is too long: ***…")


def test_what_was_told_in_json_of_the_other_kind_is_hidden_as_a_whole() -> None:
    text = 'мой ключ "sk-harbour-12345678" и\nещё'
    log = told(
        raised(json.dumps({"p": text}, ensure_ascii=False)), json.dumps({"p": text}).encode()
    )
    assert log.endswith('RuntimeError: {"p": "***"}')
