"""Calls about sessions: what a client's bytes amount to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapter.messages import SessionCall
from ingress.envelope import Refused, decode, decode_unsigned
from ingress.session_calls import MAX_CALL_BYTES, MAX_COST, digest, is_path, read

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
    assert json.loads(made.body[: made.auth_bytes]) == AUTH
    assert len(made.session_id) == 32
    assert made.body[made.auth_bytes :] == b'{"a": 1000.0}'
    again = call("create", {"auth_data": AUTH, "payload": payload})
    assert again.session_id != made.session_id
    assert again.auth == made.auth


@pytest.mark.parametrize(
    ("payload", "kept", "named"),
    [
        ({}, b"", False),
        ({"on_close_payload": [1]}, b"", False),
        ({"on_close_route": None, "on_close_payload": [1]}, b"", False),
        ({"on_close_route": "/x", "on_close_payload": None}, b"", False),
        ({"on_close_route": "/x", "on_close_payload": [1]}, b"[1]", False),
        (
            {"on_close_route": "/x", "on_close_payload": {"session_id": 1}},
            b'{"session_id": 1}',
            True,
        ),
    ],
)
def test_what_is_kept_for_the_end(payload: Any, kept: bytes, named: bool) -> None:
    made = call("create", {"auth_data": AUTH, "payload": payload})
    assert made.lifetime_s == 60
    assert (made.body[made.auth_bytes :], made.names_itself) == (kept, named)


def test_without_signatures_nobody_need_say_who_he_is() -> None:
    made = call("create", {"payload": {}}, signed=False)
    assert (made.body, made.request_idx, made.reqnum) == (b"{}", -1, None)
    assert call("end", {"session_id": "x", "session_auth": {}}).auth == made.auth
    made = call("create", {"auth_data": {"url": "http://h"}, "payload": {}}, signed=False)
    assert call("end", {"session_id": "x", "session_auth": {"url": "http://h"}}).auth == made.auth


def test_a_creation_goes_through_the_door() -> None:
    def shut(envelope: Any) -> None:
        raise Refused("bad_signature", "no")

    body = json.dumps({"auth_data": AUTH, "payload": {}}).encode()
    with pytest.raises(Refused, match="bad_signature"):
        read("create", 1, body, decode, shut)


@pytest.mark.parametrize(
    ("cost", "workload"),
    [
        (0, 1 / 1024),
        (-5, 1 / 1024),
        (7.5, 7.5),
        (2**62, MAX_COST),
        (1e300, MAX_COST),
        ("inf", MAX_COST),
        (5e6, MAX_COST),
        ("7.5", 7.5),
        ("x", 100.0),
        ("nan", 100.0),
    ],
)
def test_a_session_is_as_much_work_as_it_costs(cost: float | str, workload: float) -> None:
    assert call("create", {"auth_data": AUTH | {"cost": cost}, "payload": {}}).workload == workload


def test_a_session_counts_for_as_much_as_a_request_may() -> None:
    body = json.dumps({"auth_data": AUTH | {"cost": 2**40}, "payload": {}}).encode()
    assert read("create", 1, body, decode, lambda envelope: None, 5e6).workload == 5e6


def test_every_fault_is_named() -> None:
    wrong = refusal("create", {"auth_data": AUTH, "payload": {"lifetime": 0, "on_close_route": ""}})
    assert wrong.kind == "invalid_parameter"
    assert wrong.extra is not None and set(wrong.extra["payload"]) == {"lifetime", "on_close_route"}
    assert refusal("create", {"payload": {}}).kind == "missing_parameter"
    assert refusal("create", b" " * (MAX_CALL_BYTES + 1)).kind == "body_too_large"
    swollen = {"on_close_route": "/x", "on_close_payload": "\x7f" * 30_000}
    body = json.dumps({"auth_data": AUTH, "payload": swollen}, ensure_ascii=False).encode()
    assert refusal("create", body).kind == "body_too_large"
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    inside = b'{"auth_data": %b, "payload": %b}'
    plain = json.dumps(AUTH).encode()
    assert refusal("create", inside % (plain, deep)).kind == "invalid_json"
    for text in (b"1e999", b"-1e999", b"9" * 5000):
        body = inside % (plain, b'{"on_close_route": "/x", "on_close_payload": %b}' % text)
        assert refusal("create", body).kind == "invalid_json"
    assert refusal("health", b'{"session_id": "\\ud800"}').kind == "invalid_json"


def test_whoever_has_no_proof_has_none() -> None:
    nothing = digest({})
    assert call("end", {"session_id": "x"}).auth == nothing
    assert call("end", {"session_id": "x", "session_auth": None}).auth == nothing
    for absent in ({}, {"auth_data": None}):
        made = call("create", absent | {"payload": {}}, signed=False)
        assert (made.auth, made.body) == (nothing, b"{}")
    assert len(call("end", {"session_id": "x" * 5000}).session_id) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(), json_values), st.dictionaries(st.text(), json_values))
def test_digest_means_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    turned = dict(reversed(list(one.items())))
    assert digest(one) == digest(turned)
    read_again = json.loads(json.dumps(one))
    assert digest(read_again) == digest(one)
    if digest(one) == digest(other):
        assert one == other
    if one != other:
        assert digest(one) != digest(other)


@given(st.text(max_size=30).map(lambda text: f"/{text}"))
def test_a_path_is_one_request_line(text: str) -> None:
    if is_path(text):
        assert len(f"POST {text} HTTP/1.1".split()) == 3
        assert not text.startswith("//")
