"""Calls about sessions: what a client's bytes amount to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapter.messages import SessionCall
from ingress.envelope import Refused, decode, decode_unsigned
from ingress.session_calls import MAX_CALL_BYTES, comparable, is_path, read

AUTH = {
    "signature": "c2ln", "cost": 12.5, "endpoint": "e", "reqnum": 7, "request_idx": 9,
    "url": "http://h:1", "__extra": [1, {"b": 2, "a": None}],
}  # fmt: skip


def call(name: str, body: Any, signed: bool = True) -> SessionCall:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read(name, 3, raw, decode if signed else decode_unsigned, lambda envelope: None)


def refusal(name: str, body: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call(name, body)
    return caught.value


def test_a_creation() -> None:
    payload = {"lifetime": 5, "on_close_route": "/end?x=1", "on_close_payload": {"a": 1e3}}
    made = call("create", {"auth_data": AUTH, "payload": payload})
    assert (made.id, made.call, made.request_idx, made.reqnum) == (3, "create", 9, 7)
    assert (made.lifetime_s, made.workload, made.on_close_route) == (5, 12.5, "/end?x=1")
    assert json.loads(made.auth_data) == AUTH
    assert len(made.session_id) == 32
    assert json.loads(made.on_close_body) == {"a": 1000.0, "session_id": made.session_id}
    assert made.on_close_payload == b'{"a": 1000.0}'
    again = call("create", {"auth_data": AUTH, "payload": payload})
    assert again.session_id != made.session_id
    assert again.auth == made.auth


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({}, {}),
        ({"on_close_payload": [1]}, {}),
        ({"on_close_route": None, "on_close_payload": [1]}, {}),
        ({"on_close_route": "/x", "on_close_payload": None}, {}),
        ({"on_close_route": "/x", "on_close_payload": [1]}, {"payload": [1]}),
        ({"on_close_route": "/x", "on_close_payload": {"session_id": "my"}}, {"session_id": "my"}),
    ],
)
def test_what_the_model_server_will_be_told(payload: Any, words: dict[str, Any]) -> None:
    made = call("create", {"auth_data": AUTH, "payload": payload})
    assert made.lifetime_s == 60
    assert json.loads(made.on_close_body) == {"session_id": made.session_id} | words


def test_without_signatures_nobody_need_say_who_he_is() -> None:
    made = call("create", {"payload": {}}, signed=False)
    assert (made.auth_data, made.request_idx, made.reqnum) == (b"{}", -1, None)
    assert call("end", {"session_id": "x", "session_auth": {}}).auth == made.auth
    made = call("create", {"auth_data": {"url": "http://h"}, "payload": {}}, signed=False)
    assert call("end", {"session_id": "x", "session_auth": {"url": "http://h"}}).auth == made.auth


def test_a_creation_goes_through_the_door() -> None:
    def shut(envelope: Any) -> None:
        raise Refused("bad_signature", "no")

    body = json.dumps({"auth_data": AUTH, "payload": {}}).encode()
    with pytest.raises(Refused, match="bad_signature"):
        read("create", 1, body, decode, shut)


def test_every_fault_is_named() -> None:
    wrong = refusal("create", {"auth_data": AUTH, "payload": {"lifetime": 0, "on_close_route": ""}})
    assert wrong.kind == "invalid_parameter"
    assert wrong.extra is not None and set(wrong.extra["payload"]) == {"lifetime", "on_close_route"}
    assert refusal("create", {"payload": {}}).kind == "missing_parameter"
    assert refusal("create", b" " * (MAX_CALL_BYTES + 1)).kind == "body_too_large"
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    inside = b'{"auth_data": %b, "payload": %b}'
    plain = json.dumps(AUTH).encode()
    assert refusal("create", inside % (plain, deep)).kind == "invalid_json"
    for text in (b"1e999", b"-1e999", b"9" * 5000):
        body = inside % (plain, b'{"on_close_route": "/x", "on_close_payload": %b}' % text)
        assert refusal("create", body).kind == "invalid_json"
    assert refusal("health", b'{"session_id": "\\ud800"}').kind == "invalid_json"


def test_whoever_has_no_proof_has_none() -> None:
    assert call("end", {"session_id": "x"}).auth == b""
    assert call("end", {"session_id": "x", "session_auth": None}).auth == b""
    assert len(call("end", {"session_id": "x" * 5000}).session_id) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(), json_values), st.dictionaries(st.text(), json_values))
def test_comparable_means_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    turned = dict(reversed(list(one.items())))
    assert comparable(one) == comparable(turned)
    read_again = json.loads(json.dumps(one))
    assert comparable(read_again) == comparable(one)
    if comparable(one) == comparable(other):
        assert one == other
    if one != other:
        assert comparable(one) != comparable(other)


@given(st.text(max_size=30).map(lambda text: f"/{text}"))
def test_a_path_is_one_request_line(text: str) -> None:
    if is_path(text):
        assert len(f"POST {text} HTTP/1.1".split()) == 3
        assert not text.startswith("//")
