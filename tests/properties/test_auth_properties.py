"""Searches for auth_data that is judged wrongly, or that raises anything but a refusal."""

from __future__ import annotations

import base64
import functools
import json
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
SEARCH = settings(deadline=None, max_examples=60)

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
    try:
        same = base64.b64decode(text, validate=True) == base64.b64decode(signed.signature)
    except ValueError:
        same = False
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


@settings(deadline=None, max_examples=40)
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
