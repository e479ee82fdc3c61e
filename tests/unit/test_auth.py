"""The authenticator, case by case; the searching tests are in test_auth_properties.py."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ingress.auth import Authenticator
from ingress.envelope import AuthData, Refused

URL = "https://192.0.2.1:40000"


def pem_of(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def sign(key: RSAPrivateKey, message: str) -> str:
    return base64.b64encode(key.sign(message.encode(), PKCS1v15(), SHA256())).decode()


def signed_url(key: RSAPrivateKey, url: str = URL, **changes: Any) -> AuthData:
    """auth_data of today's scheme; the signed text is written out, not computed."""
    signature = sign(key, '{\n    "url": "' + url + '"\n}')
    return auth_data(signature=signature, url=url, **changes)


def signed_2024(key: RSAPrivateKey, reqnum: int, cost: str = "256.0", url: str = URL) -> AuthData:
    """auth_data of 2024's scheme."""
    lines = (
        f'    "cost": {cost},\n    "endpoint": "e",\n    "reqnum": {reqnum},\n    "url": "{url}"'
    )
    number = float(cost) if "." in cost else int(cost)
    return auth_data(
        signature=sign(key, "{\n" + lines + "\n}"), cost=number, reqnum=reqnum, url=url
    )


def auth_data(**changes: Any) -> AuthData:
    fields: dict[str, Any] = {
        "signature": "",
        "cost": 256.0,
        "endpoint": "e",
        "reqnum": 1,
        "request_idx": 7,
        "url": URL,
    }
    return AuthData(**(fields | changes))


def authenticator(key: RSAPrivateKey | None, **changes: Any) -> Authenticator:
    arguments: dict[str, Any] = {
        "mode": "signature",
        "scheme": "any",
        "expected_url": URL,
        "check_url": True,
        "replay_window": 100,
        "cache_entries": 16,
    }
    door = Authenticator(**(arguments | changes))
    if key is not None:
        door.set_key(pem_of(key))
    return door


def verdict(door: Authenticator, auth: AuthData | None) -> str:
    try:
        door.check(auth)
    except Refused as refused:
        return refused.kind
    return "ok"


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def other_key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


def test_todays_signature_serves_many_requests(key: RSAPrivateKey) -> None:
    for scheme in ("url", "any"):
        door = authenticator(key, scheme=scheme)
        for reqnum in (5, 5, 1000, 1):
            assert verdict(door, signed_url(key, reqnum=reqnum)) == "ok"
    assert verdict(authenticator(key, scheme="2024"), signed_url(key)) == "bad_signature"


def test_signature_of_2024_serves_one_request(key: RSAPrivateKey) -> None:
    for scheme in ("2024", "any"):
        door = authenticator(key, scheme=scheme)
        auth = signed_2024(key, 5)
        assert [verdict(door, auth) for _ in range(3)] == ["ok", "replayed", "replayed"]
    assert verdict(authenticator(key, scheme="url"), signed_2024(key, 5)) == "bad_signature"


def test_a_process_knows_of_no_message_that_another_took(key: RSAPrivateKey) -> None:
    before, after = authenticator(key), authenticator(key)
    newest, old = signed_2024(key, 1000), signed_2024(key, 7)
    assert [verdict(before, auth) for auth in (newest, old)] == ["ok", "replayed"]
    assert [verdict(after, auth) for auth in (old, newest)] == ["ok", "ok"]
    assert [verdict(after, auth) for auth in (old, newest)] == ["replayed", "replayed"]


def test_2024_signs_the_json_text_of_the_cost(key: RSAPrivateKey) -> None:
    door = authenticator(key)
    assert verdict(door, signed_2024(key, 1, cost="1.0")) == "ok"
    assert verdict(door, signed_2024(key, 2, cost="1")) == "ok"
    signed_as_float = signed_2024(key, 3, cost="1.0")
    as_int = auth_data(signature=signed_as_float.signature, cost=1, reqnum=3)
    assert verdict(door, as_int) == "bad_signature"


def test_the_replay_window_has_edges(key: RSAPrivateKey) -> None:
    door = authenticator(key, replay_window=3)
    assert verdict(door, signed_2024(key, 10)) == "ok"
    assert verdict(door, signed_2024(key, 7)) == "ok"
    assert verdict(door, signed_2024(key, 6)) == "replayed"
    assert verdict(door, signed_2024(key, 9)) == "ok"
    assert verdict(door, signed_2024(key, 8)) == "ok"
    assert verdict(door, signed_2024(key, 10)) == "replayed"
    assert verdict(door, signed_2024(key, 10, cost="2.0")) == "ok"
    assert verdict(door, signed_2024(key, 1000)) == "ok"
    assert verdict(door, signed_2024(key, 996)) == "replayed"
    assert verdict(door, signed_2024(key, 997)) == "ok"


def test_an_engine_that_repeats_numbers_cannot_fill_the_memory(key: RSAPrivateKey) -> None:
    door = authenticator(key, replay_window=1)
    messages = [signed_2024(key, 5, cost=str(cost)) for cost in range(9)]
    assert [verdict(door, auth) for auth in messages] == ["ok"] * 9
    assert {verdict(door, auth) for auth in messages} == {"replayed"}
    assert verdict(door, signed_2024(key, 5, cost="99")) == "replayed"  # too many to remember
    assert verdict(door, signed_2024(key, 6)) == "ok"


@pytest.mark.parametrize(
    "spelling",
    [
        "https://worker.example:443/",
        "HTTPS://Worker.Example",
        "https://worker.example/",
        "https://worker.example:443",
    ],
)
def test_spellings_of_the_own_url(key: RSAPrivateKey, spelling: str) -> None:
    door = authenticator(key, expected_url="https://worker.example")
    assert verdict(door, signed_url(key, spelling)) == "ok"
    door = authenticator(key, expected_url=spelling)
    assert verdict(door, signed_url(key, "https://worker.example")) == "ok"


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:40000",
        "https://192.0.2.2:40000",
        "https://192.0.2.1:40001",
        "https://192.0.2.1:40000/path",
        "https://192.0.2.1:40000?a",
        "https://192.0.2.1:40000#a",
        "https://me@192.0.2.1:40000",
        "https://192.0.2.1:port",
        "https://[192.0.2.1:40000",
        "192.0.2.1:40000",
        "",
    ],
)
def test_urls_of_others(key: RSAPrivateKey, url: str) -> None:
    auth = signed_url(key, url)
    door = authenticator(key)
    assert verdict(door, auth) == "foreign_url"
    assert not door.take_suspicion()
    assert verdict(authenticator(key, check_url=False), auth) == "ok"


@pytest.mark.parametrize("odd", ["\n", "\t", " ", "\0", "\u200b", "\u0660", "４"])
def test_no_spelling_of_the_own_url_holds_more_than_printable_ascii(
    key: RSAPrivateKey, odd: str
) -> None:
    for place in (0, 3, 8, len(URL) - 2, len(URL)):
        auth = auth_data(url=URL[:place] + odd + URL[place:], signature="AAAA")
        assert verdict(authenticator(key), auth) == "foreign_url"


@pytest.mark.parametrize("url", ["", "192.0.2.1:3000", "ftp://192.0.2.1", "https://"])
def test_an_own_url_that_cannot_be_checked(url: str) -> None:
    with pytest.raises(ValueError, match=r"worker\.public_url"):
        authenticator(None, expected_url=url)
    authenticator(None, expected_url=url, check_url=False)
    authenticator(None, expected_url=url, mode="none")


def test_signature_of_another_key(key: RSAPrivateKey, other_key: RSAPrivateKey) -> None:
    door = authenticator(key)
    assert verdict(door, signed_url(other_key)) == "bad_signature"
    assert verdict(door, signed_2024(other_key, 1)) == "bad_signature"


@pytest.mark.parametrize("signature", ["not base64!", "AAA", "é", "AA==\n", "A" * 4096, "AAAA"])
def test_signatures_that_are_none(key: RSAPrivateKey, signature: str) -> None:
    assert verdict(authenticator(key), auth_data(signature=signature)) == "bad_signature"


@pytest.mark.parametrize("extra", ["\n", " ", "=", "\0", "-", "é"])
def test_a_good_signature_with_something_added(key: RSAPrivateKey, extra: str) -> None:
    good = signed_url(key).signature
    for signature in (good + extra, extra + good, good[:9] + extra + good[9:]):
        assert verdict(authenticator(key), auth_data(signature=signature)) == "bad_signature"


def test_another_spelling_of_a_good_signature(key: RSAPrivateKey) -> None:
    good = signed_url(key).signature
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = good[:-3] + letters[letters.index(good[-3]) ^ 1] + "=="
    assert base64.b64decode(twin) == base64.b64decode(good)
    assert verdict(authenticator(key), auth_data(signature=twin)) == "bad_signature"


def test_without_a_signature(key: RSAPrivateKey) -> None:
    assert verdict(authenticator(key), auth_data()) == "signature_missing"
    assert verdict(authenticator(key), None) == "signature_missing"


def test_without_a_key(key: RSAPrivateKey) -> None:
    door = authenticator(None)
    assert verdict(door, signed_url(key)) == "no_public_key"
    assert door.take_suspicion()
    door.set_key(pem_of(key))
    assert verdict(door, signed_url(key)) == "ok"
    assert not door.take_suspicion()


def test_without_authentication() -> None:
    door = authenticator(None, mode="none", expected_url="")
    assert verdict(door, None) == verdict(door, auth_data()) == "ok"


def test_a_new_key_forgets_what_the_old_one_verified(
    key: RSAPrivateKey, other_key: RSAPrivateKey
) -> None:
    door = authenticator(key)
    assert verdict(door, signed_url(key)) == "ok"
    assert verdict(door, signed_2024(key, 1000)) == "ok"
    door.set_key(pem_of(other_key))
    assert verdict(door, signed_url(key)) == "bad_signature"
    assert verdict(door, signed_2024(other_key, 1)) == "ok"


def test_the_same_key_again_changes_nothing(key: RSAPrivateKey) -> None:
    door = authenticator(key)
    assert verdict(door, signed_2024(key, 1)) == "ok"
    door.set_key(pem_of(key))
    assert verdict(door, signed_2024(key, 1)) == "replayed"


@pytest.mark.parametrize(
    "pem", ["", "text", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "\ud800"]
)
def test_keys_that_are_none(key: RSAPrivateKey, pem: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        authenticator(None).set_key(pem)
    door = authenticator(key)
    with pytest.raises(ValueError, match="public key"):
        door.set_key(pem)
    assert verdict(door, signed_url(key)) == "ok"


def test_keys_of_another_kind(key: RSAPrivateKey) -> None:
    door = authenticator(key)
    with pytest.raises(ValueError, match="no RSA key"):
        door.set_key(pem_of(ec.generate_private_key(ec.SECP256R1())))
    assert verdict(door, signed_url(key)) == "ok"


def test_suspicion_is_raised_by_forgeries_and_taken_once(
    key: RSAPrivateKey, other_key: RSAPrivateKey
) -> None:
    door = authenticator(key)
    assert not door.take_suspicion()
    assert verdict(door, signed_url(other_key)) == "bad_signature"
    assert door.take_suspicion()
    assert not door.take_suspicion()
    assert verdict(door, auth_data(signature="not base64!")) == "bad_signature"
    assert not door.take_suspicion()


def test_the_memory_of_verified_pairs_is_bounded(key: RSAPrivateKey) -> None:
    door = authenticator(key, check_url=False, cache_entries=2)
    auths = [signed_url(key, f"https://w{number}.example") for number in range(5)]
    for _ in range(2):
        assert [verdict(door, auth) for auth in auths] == ["ok"] * 5
    assert len(door._verified) == 2
