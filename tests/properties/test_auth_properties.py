"""Searches for auth_data that is judged wrongly, or that raises anything but a refusal.

What a scheme leaves free, a client may change at will, and nothing else:

- today's (``url``) signs the JSON text of ``{"url"}``. Free: cost, endpoint, reqnum, request_idx,
  further keys, and how often it is sent.
- 2024's signs cost, endpoint, reqnum and url, in the JSON text that Python writes for their values.
  Free: request_idx and further keys; each signed message counts once.
- In both, how the JSON of the envelope is written: blanks, the order of keys, escapes, ``2.56e2``
  for ``256.0``. Not free: another type for the same number (``256`` for ``256.0``), another
  normal form of the same letters, another spelling of the signature's base64.
"""

from __future__ import annotations

import base64
import functools
import json
import unicodedata
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from ingress.auth import Authenticator
from ingress.envelope import AuthData, Refused, decode

OWN = "https://192.0.2.1:40000"
SEARCH = settings(max_examples=60)

texts = st.text(st.characters(codec="utf-8"), max_size=40)
numbers = st.integers(-(2**63), 2**63 - 1)
costs = numbers | st.floats(allow_nan=False, allow_infinity=False)
auths = st.builds(
    AuthData,
    signature=texts,
    cost=costs,
    endpoint=texts,
    reqnum=numbers,
    request_idx=numbers,
    url=texts,
)


@functools.cache
def engine_key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


def sign(auth: AuthData, scheme: str) -> AuthData:
    keys = ("url",) if scheme == "url" else ("cost", "endpoint", "reqnum", "url")
    message = json.dumps({name: getattr(auth, name) for name in keys}, indent=4)
    signature = engine_key().sign(message.encode(), PKCS1v15(), SHA256())
    return msgspec.structs.replace(auth, signature=base64.b64encode(signature).decode())


def door(scheme: Any = "any", check_url: bool = False, window: int = 100) -> Authenticator:
    made = Authenticator("signature", scheme, OWN, check_url, window, 8)
    public = engine_key().public_key()
    made.set_key(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
    return made


def verdict(at: Authenticator, auth: AuthData) -> str:
    try:
        at.check(auth)
    except Refused as refused:
        return refused.kind
    return "ok"


@SEARCH
@given(auth=auths, scheme=st.sampled_from(["url", "2024"]), tolerant=st.booleans())
def test_every_signed_one_is_accepted_through_the_wire(
    auth: AuthData, scheme: str, tolerant: bool
) -> None:
    signed = sign(auth, scheme)
    body = json.dumps({"auth_data": msgspec.to_builtins(signed), "payload": {}}).encode()
    received = decode(body).auth_data
    assert received is not None
    at = door("any" if tolerant else scheme)
    assert verdict(at, received) == "ok"
    assert verdict(at, received) == ("ok" if scheme == "url" else "replayed")


@SEARCH
@given(auth=auths, other=auths, name=st.sampled_from(["cost", "endpoint", "reqnum", "url"]))
def test_every_changed_field_is_noticed_in_2024(auth: AuthData, other: AuthData, name: str) -> None:
    changed = msgspec.structs.replace(sign(auth, "2024"), **{name: getattr(other, name)})
    same = json.dumps(getattr(other, name)) == json.dumps(getattr(auth, name))
    assert verdict(door(), changed) == ("ok" if same else "bad_signature")


@SEARCH
@given(auth=auths, url=texts)
def test_a_changed_url_is_noticed_today(auth: AuthData, url: str) -> None:
    changed = msgspec.structs.replace(sign(auth, "url"), url=url)
    assert verdict(door(), changed) == ("ok" if url == auth.url else "bad_signature")


@SEARCH
@given(
    scheme=st.sampled_from(["url", "2024"]),
    position=st.integers(0, 343),
    character=st.characters(codec="utf-8"),
)
def test_a_changed_signature_is_noticed(scheme: str, position: int, character: str) -> None:
    signed = sign(AuthData("", 1.0, "e", 5, 6, OWN), scheme)
    text = signed.signature[:position] + character + signed.signature[position + 1 :]
    changed = msgspec.structs.replace(signed, signature=text)
    same = text == signed.signature
    for check_url in (True, False):
        at = door(check_url=check_url)
        assert verdict(at, changed) == ("ok" if same else "bad_signature")


@SEARCH
@given(
    auth=auths | auths.map(lambda auth: msgspec.structs.replace(auth, url=OWN)),
    signature=texts | st.binary(max_size=600).map(lambda data: base64.b64encode(data).decode()),
    check_url=st.booleans(),
)
def test_noise_is_refused_and_nothing_else_is_raised(
    auth: AuthData, signature: str, check_url: bool
) -> None:
    noise = msgspec.structs.replace(auth, signature=signature)
    at = door(check_url=check_url)
    kind = verdict(at, noise)
    if not signature:
        assert kind == "signature_missing"
    elif check_url and auth.url != OWN:
        assert kind == "foreign_url"
    else:
        assert kind == "bad_signature"


@SEARCH
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        decode(body)


@SEARCH
@given(
    urls=st.lists(st.sampled_from([OWN, OWN + "/", "https://192.0.2.9"]), min_size=1, max_size=12),
    forged=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_verdicts_do_not_depend_on_what_is_remembered(urls: list[str], forged: list[bool]) -> None:
    warm = door(check_url=True)
    for url, is_forged in zip(urls, forged):
        signed = sign(AuthData("", 1.0, "e", 5, 6, url), "url")
        if is_forged:
            other = sign(AuthData("", 1.0, "e", 5, 6, url + "?"), "url")
            signed = msgspec.structs.replace(signed, signature=other.signature)
        assert verdict(warm, signed) == verdict(door(check_url=True), signed)


@settings(max_examples=40)
@given(reqnums=st.lists(st.integers(0, 12), max_size=25), window=st.integers(1, 5))
def test_replays_follow_the_window(reqnums: list[int], window: int) -> None:
    at = door("2024", window=window)
    accepted: list[int] = []
    for reqnum in reqnums:
        behind = bool(accepted) and reqnum < max(accepted) - window
        expected = "replayed" if behind or reqnum in accepted else "ok"
        assert verdict(at, _message(reqnum)) == expected
        if expected == "ok":
            accepted.append(reqnum)


@functools.cache
def _message(reqnum: int) -> AuthData:
    return sign(AuthData("", 1.0, "e", reqnum, 6, OWN), "2024")


# ------------------------------------------------------- mutations of what a client sends

SIGNED = {"url": ("url",), "2024": ("cost", "endpoint", "reqnum", "url")}
values = st.none() | st.booleans() | numbers | costs | texts | st.lists(texts, max_size=2)
letters = st.text(st.sampled_from("aé\u0301eöÅ\u212bﬁｱ 1"), min_size=1, max_size=8)


def judged(at: Authenticator, body: bytes) -> str:
    """What becomes of a body, from its bytes on."""
    try:
        received = decode(body).auth_data
    except Refused as refused:
        return refused.kind
    assert received is not None
    return verdict(at, received)


def as_sent(auth: AuthData) -> dict[str, Any]:
    return dict(msgspec.to_builtins(auth))


def body_of(auth: Any) -> bytes:
    return json.dumps({"auth_data": auth, "payload": {}}).encode()


def same_text(one: Any, other: Any) -> bool:
    """Python writes the same JSON for both; what is signed is that text."""
    return type(one) is type(other) and json.dumps(one) == json.dumps(other)


@SEARCH
@given(
    auth=auths,
    scheme=st.sampled_from(["url", "2024"]),
    changes=st.dictionaries(
        st.sampled_from(["cost", "endpoint", "reqnum", "request_idx", "url", "x", "URL", "Cost"]),
        values,
        min_size=1,
        max_size=4,
    ),
    absent=st.sets(st.sampled_from(["cost", "endpoint", "reqnum", "request_idx", "url"])),
)
def test_only_what_the_scheme_leaves_free_may_be_changed(
    auth: AuthData, scheme: str, changes: dict[str, Any], absent: set[str]
) -> None:
    good = as_sent(sign(auth, scheme))
    sent = {name: value for name, value in (good | changes).items() if name not in absent}
    verdict_on = judged(door(scheme), body_of(sent))
    malformed = verdict_on in ("missing_parameter", "invalid_parameter")
    if absent or malformed:
        assert verdict_on == "missing_parameter" if absent else malformed
        return
    received = decode(body_of(sent)).auth_data
    kept = all(same_text(getattr(received, name), good[name]) for name in SIGNED[scheme])
    assert verdict_on == ("ok" if kept else "bad_signature")


@SEARCH
@given(
    scheme=st.sampled_from(["url", "2024"]),
    bits=st.sets(st.integers(0, 2047), min_size=1, max_size=3),
)
def test_no_flipped_bits_of_the_signature_are_accepted(scheme: str, bits: set[int]) -> None:
    signed = sign(AuthData("", 1.0, "e", 5, 6, OWN), scheme)
    raw = bytearray(base64.b64decode(signed.signature))
    for bit in bits:
        raw[bit // 8] ^= 1 << bit % 8
    changed = msgspec.structs.replace(signed, signature=base64.b64encode(raw).decode())
    assert verdict(door(check_url=True), changed) == "bad_signature"


@SEARCH
@given(
    scheme=st.sampled_from(["url", "2024"]),
    position=st.integers(0, 20_000),
    bit=st.integers(0, 7),
)
def test_no_flipped_bit_of_a_body_is_accepted_unless_it_is_free(
    scheme: str, position: int, bit: int
) -> None:
    auth = sign(AuthData("", 1.5, "end", 5, 6, OWN), scheme)
    body = bytearray(body_of(as_sent(auth)))
    body[position % len(body)] ^= 1 << bit
    if judged(door(scheme), bytes(body)) != "ok":
        return
    received = decode(bytes(body)).auth_data
    assert received is not None and received.signature == auth.signature
    for name in SIGNED[scheme]:
        assert same_text(getattr(received, name), getattr(auth, name)), bytes(body)


@SEARCH
@given(auth=auths, scheme=st.sampled_from(["url", "2024"]), data=st.data())
def test_how_the_json_is_written_is_free(auth: AuthData, scheme: str, data: Any) -> None:
    good = as_sent(sign(auth, scheme))
    names = data.draw(st.permutations(list(good)))
    sent = {name: good[name] for name in names} | {"more": data.draw(values)}
    blanks = data.draw(st.sampled_from([(",", ":"), (" ,\n", "\t:\r\n")]))
    text = json.dumps(
        {"payload": {}, "auth_data": sent},
        ensure_ascii=data.draw(st.booleans()),
        separators=blanks,
    )
    assert judged(door(scheme), text.encode()) == "ok"


@SEARCH
@given(
    endpoint=letters,
    form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]),
    name=st.sampled_from(["endpoint", "url"]),
)
def test_another_normal_form_is_another_text(endpoint: str, form: Any, name: str) -> None:
    auth = msgspec.structs.replace(AuthData("", 1.0, "e", 5, 6, OWN), **{name: endpoint})
    other = unicodedata.normalize(form, endpoint)
    changed = msgspec.structs.replace(sign(auth, "2024"), **{name: other})
    assert verdict(door("2024"), changed) == ("ok" if other == endpoint else "bad_signature")


@pytest.mark.parametrize(
    ("signed", "sent", "expected"),
    [
        (256.0, "256.0", "ok"),
        (256.0, "2.56e2", "ok"),
        (256.0, "256.000", "ok"),
        (256.0, "256", "bad_signature"),
        (256, "256", "ok"),
        (256, "256.0", "bad_signature"),
        (256, "2.56E+2", "bad_signature"),
        (256, '"256"', "bad_signature"),
        ("256", "256", "bad_signature"),
        ("256", '"256"', "ok"),
        ("256", '"\\u0032\\u0035\\u0036"', "ok"),
        ("256", '"256 "', "bad_signature"),
        (0.0, "-0.0", "bad_signature"),
        (0.0, "1e-400", "ok"),
        (0, "-0", "ok"),
        (0.1, "0.1000000000000000055511151231257827", "ok"),
        (0.1, "0.10000000000000002", "bad_signature"),
        (1e22, "10000000000000000000000.0", "ok"),
        (2**53, "9007199254740993", "bad_signature"),
        (1, "0x1", "invalid_json"),
        (1, "01", "invalid_json"),
        (1, "+1", "invalid_json"),
        (1, "1_0", "invalid_json"),
        (1, "Infinity", "invalid_json"),
        (1, "1e999", "invalid_parameter"),
        (1, "true", "invalid_parameter"),
    ],
)
def test_numbers_as_they_are_written(signed: Any, sent: str, expected: str) -> None:
    good = as_sent(sign(AuthData("", signed, "e", 5, 6, OWN), "2024"))
    text = json.dumps({"auth_data": {**good, "cost": "COST"}, "payload": {}})
    assert judged(door("2024"), text.replace('"COST"', sent).encode()) == expected
