"""A client's own signature: the form is read exactly, and nothing signed can be changed.

The example's client signs, ``ingress/message_signature.py`` reads: two ends that share no code.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import strict_client
from ingress import message_signature
from ingress.envelope import Refused
from ingress.message_signature import MAX_LIFE_S, SKEW_S, Claim, judge, read

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
BASE = "https://192.0.2.1:40000"
TARGET = f"{BASE}/generate?api_key=k"
NOW = 1_800_000_000
SEARCH = settings(max_examples=100)
Lines = list[tuple[bytes, bytes]]


def lines(body: bytes = b"{}", url: str = TARGET, **how: Any) -> Lines:
    """Header lines as the server has them."""
    signed = strict_client.signed_headers(KEY, "alice", url, body, **({"created": NOW} | how))
    made = [(name.lower().encode(), value.encode()) for name, value in signed.items()]
    return [(b"host", b"w"), *made]


def verdict(
    headers: Lines, method: str = "POST", target: str = TARGET, now: int = NOW
) -> str | Claim:
    """The claim, where everything about it is right; the kind of refusal otherwise."""
    try:
        claim = read(headers, method, target)
        judge(claim, now)
        PUBLIC.verify(claim.signature, claim.base)
    except Refused as refused:
        return refused.kind if refused.message else "nothing said"
    except InvalidSignature:
        return "bad"
    return claim


def changed(name: bytes, old: str, new: str) -> Lines:
    """Good lines with one text of one line replaced."""
    made = [
        (each, value.replace(old.encode(), new.encode("latin-1")) if each == name else value)
        for each, value in lines()
    ]
    assert made != lines()
    return made


INPUT, SIGNATURE, DIGEST = b"signature-input", b"signature", b"content-digest"


def test_the_vector_of_the_standard() -> None:
    """RFC 9421, appendix B.2.6, with its key."""
    pem = (
        b"-----BEGIN PUBLIC KEY-----\n"
        b"MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n"
        b"-----END PUBLIC KEY-----\n"
    )
    key = load_pem_public_key(pem)
    assert isinstance(key, Ed25519PublicKey)
    base = message_signature.signature_base(
        [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("@method", "POST"),
            ("@path", "/foo"),
            ("@authority", "example.com"),
            ("content-type", "application/json"),
            ("content-length", "18"),
        ],
        '("date" "@method" "@path" "@authority" "content-type" "content-length")'
        ';created=1618884473;keyid="test-key-ed25519"',
    )
    signature = (
        "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    )
    key.verify(base64.b64decode(signature), base)


@SEARCH
@given(
    body=st.binary(max_size=300),
    path=st.text(st.sampled_from("abz/.%2F-_~"), max_size=20),
    life=st.integers(1, MAX_LIFE_S),
    late=st.integers(-SKEW_S, SKEW_S),
)
def test_what_the_client_signs_is_read(body: bytes, path: str, life: int, late: int) -> None:
    url = f"{BASE}/{path}"
    claim = verdict(lines(body, url, life_s=life), target=url, now=NOW + late)
    assert isinstance(claim, Claim)
    assert claim.keyid == "alice" and claim.created == NOW and claim.expires == NOW + life
    assert len(claim.nonce_key) == 16 and len(claim.body_sha256) == 32
    assert claim.nonce_key != verdict(lines(body, url), target=url)


@SEARCH
@given(now=st.integers(NOW - 200, NOW + 200), life=st.integers(-5, 120))
def test_it_counts_from_and_until(now: int, life: int) -> None:
    told = verdict(lines(life_s=life), now=now)
    if not 0 < life <= MAX_LIFE_S:
        assert told == "client_signature_malformed"
    elif NOW - SKEW_S <= now <= NOW + life + SKEW_S:
        assert isinstance(told, Claim) and now <= told.counts_until
    else:
        assert told == "client_signature_expired"


@SEARCH
@given(
    which=st.sampled_from([INPUT, SIGNATURE, DIGEST]),
    position=st.integers(0, 400),
    byte=st.integers(0, 255),
    how=st.sampled_from(["replace", "insert", "delete"]),
)
def test_nothing_of_the_lines_may_be_changed(
    which: bytes, position: int, byte: int, how: str
) -> None:
    good = lines()
    bad: Lines = []
    for name, value in good:
        if name == which:
            at = position % len(value)
            middle = b"" if how == "delete" else bytes([byte])
            value = value[:at] + middle + value[at + (how != "insert") :]
        bad.append((name, value))
    told = verdict(bad)
    if bad == good:
        assert isinstance(told, Claim)
    elif isinstance(told, Claim):  # the label says nothing, and is not signed
        pytest.fail(f"{bad} was taken")


@SEARCH
@given(
    method=st.sampled_from(["POST", "GET", "post", "PUT"]),
    target=st.sampled_from(
        [TARGET, f"{BASE}/generate", f"{BASE}/generate?", f"{TARGET}1", f"{BASE}/G?api_key=k",
         "http://192.0.2.1:40000/generate?api_key=k", "https://192.0.2.2:40000/generate?api_key=k"]
    ),
)  # fmt: skip
def test_another_request_is_not_the_signed_one(method: str, target: str) -> None:
    told = verdict(lines(), method, target)
    if (method, target) == ("POST", TARGET):
        assert isinstance(told, Claim)
    else:
        assert told == "bad"


@SEARCH
@given(
    values=st.tuples(
        *[st.none() | st.binary(max_size=60) | st.sampled_from([v for _, v in lines()[1:]])] * 3
    )
)
def test_noise_is_refused_and_nothing_else_is_raised(values: tuple[bytes | None, ...]) -> None:
    names = (DIGEST, INPUT, SIGNATURE)
    noise = [(name, value) for name, value in zip(names, values) if value is not None]
    told = verdict(noise)
    if len(noise) < 3:
        assert told == "client_signature_missing"
    elif not isinstance(told, Claim):
        assert told in ("client_signature_malformed", "bad")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (INPUT, "client=", "client"),
        (INPUT, "client=", "="),
        (INPUT, "client=", "cl ient="),
        (INPUT, "client=", "other="),
        (SIGNATURE, "client=", "other="),
        (INPUT, '("@method" ', "("),
        (INPUT, '"@method" "@target-uri"', '"@target-uri" "@method"'),
        (INPUT, '"content-digest")', '"content-digest" "date")'),
        (INPUT, ";created=", ";made="),
        (INPUT, ";created=", ";expires=1;created="),
        (INPUT, ";created=1800000000", ""),
        (INPUT, "1800000000", "-180000000"),
        (INPUT, "1800000000", "1800000000.0"),
        (INPUT, "1800000000", "1800000000000"),
        (INPUT, "1800000000", "180000000²"),
        (INPUT, "1800000000", '"1800000000"'),
        (INPUT, '"alice"', "alice"),
        (INPUT, '"alice"', '""'),
        (INPUT, '"alice"', '"al\\"ice"'),
        (INPUT, '"alice"', '"al ice"'),
        (INPUT, '"alice"', '"'),
        (INPUT, 'nonce="', 'nonce="' + "x" * 64),
        (INPUT, "lighterman-1", "lighterman-2"),
        (INPUT, ";tag=", " ; tag="),
        (INPUT, ";tag=", ';alg="hmac-sha256";tag='),
        (INPUT, ";tag=", ";;tag="),
        (INPUT, "client=", "a=(), client="),
        (DIGEST, "sha-256=", "sha-512="),
        (DIGEST, "sha-256=", "md5=:AAAA:, sha-256="),
        (DIGEST, ":", ""),
        (SIGNATURE, "=:", "=:\n"),
        (SIGNATURE, "==:", "=:"),
        (SIGNATURE, "==:", "==:;x"),
    ],
)
def test_other_forms(name: bytes, old: str, new: str) -> None:
    assert verdict(changed(name, old, new)) == "client_signature_malformed"


def test_a_short_nonce_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_client.secrets, "token_urlsafe", lambda _: "x" * 21)
    assert verdict(lines()) == "client_signature_malformed"
    monkeypatch.setattr(strict_client.secrets, "token_urlsafe", lambda _: "x" * 22)
    assert isinstance(verdict(lines()), Claim)


def test_an_algorithm_may_be_said() -> None:
    """It is signed like the rest."""
    assert verdict(changed(INPUT, ";tag=", ';alg="ed25519";tag=')) == "bad"


@pytest.mark.parametrize("name", [INPUT, SIGNATURE, DIGEST])
def test_lines_that_are_there_twice_or_not(name: bytes) -> None:
    good = lines()
    assert verdict([*good, (name, dict(good)[name])]) == "client_signature_malformed"
    assert verdict([line for line in good if line[0] != name]) == "client_signature_missing"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://Worker.Example:443/", "https://worker.example"),
        ("HTTP://worker.example:80", "http://worker.example"),
        ("http://worker.example:443/a/", "http://worker.example:443/a"),
        ("https://[2001:DB8::1]:40000", "https://[2001:db8::1]:40000"),
    ],
)
def test_one_spelling_of_a_url(url: str, base: str) -> None:
    assert message_signature.base_url(url) == base
    path = f"{url.rstrip('/')}/generate"
    told = verdict(lines(url=path), target=f"{base}/generate")
    assert isinstance(told, Claim)


@pytest.mark.parametrize("text", ["", "AAAA", "é", "A" * 43, "A" * 44])
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes in base64"):
        message_signature.key_bytes(text)
    assert len(message_signature.key_bytes(strict_client.public_text(KEY))) == 32
