"""The envelope: every malformed body gets one typed refusal, every good one passes untouched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingress.envelope import AuthData, Envelope, Refused, decode, decode_unsigned

AUTH: dict[str, Any] = {
    "signature": "c2ln",
    "cost": 256.0,
    "endpoint": "my-endpoint",
    "reqnum": 12,
    "request_idx": 7,
    "url": "https://192.0.2.1:40000",
}


def body(**changes: Any) -> bytes:
    whole = {"auth_data": AUTH, "payload": {"inputs": "hi"}, "session_id": None} | changes
    return json.dumps({k: v for k, v in whole.items() if v is not ...}).encode()


def auth(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (AUTH | changes).items() if v is not ...}


def refusal(data: bytes, read: Any = decode) -> Refused:
    with pytest.raises(Refused) as caught:
        read(data)
    assert caught.value.message
    return caught.value


def outcome(data: bytes, read: Any) -> str:
    try:
        read(data)
    except Refused as refused:
        return refused.kind
    return "read"


def payload_of(envelope: Envelope) -> bytes:
    return bytes(envelope.payload)


@pytest.mark.parametrize("as_type", [bytes, bytearray, memoryview])
def test_reads_what_the_official_client_sends(as_type: Any) -> None:
    data = body(auth_data=auth(status="READY", __request_id="x", nested={"a": [1]}))
    envelope = decode(as_type(data))
    assert envelope.auth_data == AuthData(**AUTH)
    assert json.loads(payload_of(envelope)) == {"inputs": "hi"}
    assert envelope.session_id is None


def test_payload_bytes_are_untouched() -> None:
    payload = b'{ "a" : 1.50,\t"b":"\\u00e9", "a": "\xc3\xa9" }'
    data = b'{"payload":' + payload + b',"auth_data":' + json.dumps(AUTH).encode() + b"}"
    assert payload_of(decode(data)) == payload


def test_session_id_is_read() -> None:
    assert decode(body(session_id="abc")).session_id == "abc"
    assert decode(body(session_id=...)).session_id is None


@pytest.mark.parametrize("cost", ["1", "1.0", "0", "-0", "-0.0", "1e2", "0.1", "12345678901"])
def test_cost_keeps_the_json_text_that_python_writes(cost: str) -> None:
    data = body().replace(b"256.0", cost.encode())
    read = decode(data).auth_data
    assert read is not None
    assert json.dumps(read.cost) == json.dumps(json.loads(cost))


def test_a_key_twice_counts_as_the_last() -> None:
    data = b'{"payload":1,' + body()[1:-1] + b',"payload":{"last":true}}'
    assert payload_of(decode(data)) == b'{"last":true}'
    refused = refusal(body()[:-1] + b',"payload":1}')
    assert refused.kind == "invalid_parameter"


def test_names_every_missing_parameter_at_once() -> None:
    refused = refusal(body(auth_data=auth(url=..., cost=..., reqnum="12")))
    assert refused.kind == "missing_parameter"
    assert refused.extra is not None
    faults = refused.extra["auth_data"]
    assert faults["url"] == faults["cost"] == "missing parameter"
    assert set(faults) == {"url", "cost", "reqnum"}
    assert "auth_data.url" in refused.message


@pytest.mark.parametrize("name", list(AUTH))
def test_each_parameter_is_required(name: str) -> None:
    refused = refusal(body(auth_data=auth(**{name: ...})))
    assert refused.kind == "missing_parameter"
    assert refused.extra == {"auth_data": {name: "missing parameter"}}


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({"auth_data": ...}, {"auth_data": "field missing"}),
        ({"auth_data": None}, {"auth_data": "field missing"}),
        ({"payload": ...}, {"payload": "field missing"}),
        (
            {"payload": ..., "auth_data": ...},
            {"payload": "field missing", "auth_data": "field missing"},
        ),
    ],
)
def test_missing_parts(changes: dict[str, Any], extra: dict[str, Any]) -> None:
    refused = refusal(body(**changes))
    assert refused.kind == "missing_parameter"
    assert refused.extra == extra


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signature", 5),
        ("signature", None),
        ("signature", "A" * 2**20),
        ("cost", [256]),
        ("cost", True),
        ("cost", 10**25),
        ("endpoint", ["e"]),
        ("endpoint", "e" * 5000),
        ("reqnum", 1.0),
        ("reqnum", 2**63),
        ("request_idx", "7"),
        ("request_idx", 10**400),
        ("url", {"a": 1}),
        ("url", "u" * 4097),
    ],
)
def test_wrong_types_and_bounds(name: str, value: Any) -> None:
    refused = refusal(body(auth_data=auth(**{name: value})))
    assert refused.kind == "invalid_parameter"
    assert refused.extra is not None
    assert list(refused.extra["auth_data"]) == [name]
    assert len(refused.message) < 300


@pytest.mark.parametrize("value", [5, "text", [1], True])
def test_parts_that_are_no_objects(value: Any) -> None:
    assert refusal(body(auth_data=value)).extra == {"auth_data": "must be an object"}
    assert refusal(body(payload=value)).extra == {"payload": "must be an object"}
    assert refusal(body(payload=value), decode_unsigned).kind == "invalid_parameter"
    assert refusal(body(payload=None)).kind == "invalid_parameter"


def test_session_id_of_another_type() -> None:
    for read in (decode, decode_unsigned):
        refused = refusal(body(session_id=5), read)
        assert refused.kind == "invalid_parameter"
        assert refused.extra == {"session_id": "must be a string or null"}


@pytest.mark.parametrize("data", [b"[]", b"null", b"5", b'"text"', b"true"])
@pytest.mark.parametrize("read", [decode, decode_unsigned])
def test_bodies_that_are_no_objects(data: bytes, read: Any) -> None:
    assert refusal(data, read).kind == "invalid_parameter"


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   ",
        b"\xef\xbb\xbf" + body(),
        b"hello",
        body() + b"x",
        body()[:-1],
        b"\xff\xfe",
        body().replace(b"12,", b"NaN,"),
        body()[:-1] + b',"payload":{"a":NaN}}',
        body()[:-1] + b',"payload":{"a":-Infinity}}',
        body()[:-1] + b',"payload":{"a":01}}',
        body()[:-1] + b',"payload":{"a":1.}}',
        body()[:-1] + b',"payload":{"a":"\\x"}}',
        body()[:-1] + b',"payload":{"a":"\n"}}',
        body()[:-1] + b',"payload":{"a":"\\ud800"}}',
        body()[:-1] + b',"payload":{"a":"\xff"}}',
        body()[:-1] + b',"payload":{"a":"\xed\xa0\x80"}}',
        body()[:-1] + b',"payload":{"\xc3":1}}',
        body()[:-1] + b',"payload":{"a":[1,]}}',
        body()[:-1] + b',"payload":{a:1}}',
        body()[:-1] + b',"payload":' + DEEP + b"}",
        body()[:-1] + b',"payload":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        body()[:-1] + b',"auth_data":' + DEEP + b"}",
        body()[:-1] + b',"other":' + DEEP + b"}",
        body()[:-1] + b',"session_id":"\xff"}',
        body()[:-1] + b',"other":"\xff"}',
        DEEP,
    ],
)
@pytest.mark.parametrize("read", [decode, decode_unsigned])
def test_what_is_no_json(data: bytes, read: Any) -> None:
    refused = refusal(data, read)
    # A body, or auth_data, that is an array is refused for that before its depth is seen.
    assert refused.kind == "invalid_json" or data is DEEP
    assert len(refused.message) < 300


@pytest.mark.parametrize("depth", [*range(900, 1000, 1), 9_990, 9_999, 10_000])
def test_nesting_near_the_limit_of_the_interpreter_passes_or_is_refused(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for data in (
        body()[:-1] + b',"other":' + nested + b"}",
        body(auth_data=auth(more="deep")).replace(b'"deep"', nested),
        body(auth_data=auth(url="deep")).replace(b'"deep"', nested),
        body(payload={"a": "deep"}).replace(b'"deep"', nested),
    ):
        for read in (decode, decode_unsigned):
            assert outcome(data, read) in {"read", "invalid_json", "invalid_parameter"}


def test_utf8_across_the_pieces_of_a_large_body() -> None:
    text = "é€😀" * 400_000
    data = json.dumps({"auth_data": AUTH, "payload": {"a": text}}, ensure_ascii=False).encode()
    assert len(payload_of(decode(data))) > 3 * 2**20
    cut = data[:-3] + b'\xc3"}}'
    assert refusal(cut).kind == "invalid_json"
    middle = data.replace(b"\xf0\x9f\x98\x80", b"\xf0\x9f\x98 ", 1)
    assert refusal(middle).kind == "invalid_json"


def test_signed_decoding_refuses_a_huge_integer_without_raising_anything_else() -> None:
    data = body().replace(b"256.0", b"9" * 20_000)
    assert refusal(data).kind == "invalid_parameter"


def test_unsigned_bodies_need_no_auth_data() -> None:
    envelope = decode_unsigned(b'{"payload":{"a":1}}')
    assert envelope.auth_data is None
    assert payload_of(envelope) == b'{"a":1}'
    assert decode_unsigned(body()).auth_data == AuthData(**AUTH)


def test_unsigned_bodies_keep_what_is_usable_of_auth_data() -> None:
    data = body(auth_data={"request_idx": 7, "cost": [], "url": None}, session_id="s")
    envelope = decode_unsigned(data)
    assert envelope.auth_data == AuthData(
        signature="", cost=0, endpoint="", reqnum=0, request_idx=7, url=""
    )
    assert envelope.session_id == "s"
    nobody = decode_unsigned(body(auth_data="?", session_id=...)).auth_data
    assert nobody is not None and nobody.request_idx == -1


def test_unsigned_bodies_need_a_payload() -> None:
    refused = refusal(body(payload=..., auth_data=...), decode_unsigned)
    assert refused.kind == "missing_parameter"
    assert refused.extra == {"payload": "field missing"}
