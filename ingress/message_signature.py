"""Pure: a client's own signature over one request, as RFC 9421 writes it, in one fixed form.

For people who own both ends (setting ``auth.clients``). Three header lines:

    Content-Digest: sha-256=:…:
    Signature-Input: client=("@method" "@target-uri" "content-digest");created=…;expires=…;\
nonce="…";keyid="…";tag="lighterman-1"
    Signature: client=:…:

What is signed is the signature base of RFC 9421 section 2.5, with Ed25519: the method, this
worker's URL with path and query, the digest of the body (RFC 9530), from when until when it counts,
a number that is used once, whose key it is, and which form this is. Nothing else of the request is
signed, and nothing of it may be left out or written in another way.

Law: what is read is either exactly this form or refused, and nothing that a client can send raises
anything but ``Refused``. It must not know keys, clocks or sockets.
"""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from ingress.envelope import Refused

#: The header lines.
HEADERS = (b"signature-input", b"signature", b"content-digest")
COMPONENTS = '("@method" "@target-uri" "content-digest")'
#: Which form this is; another one gets another number.
TAG = "lighterman-1"
#: Seconds that a signature may count at most.
MAX_LIFE_S = 60
#: Seconds that the client's clock and this machine's may differ by.
SKEW_S = 10
#: Characters of a nonce: 128 random bits in base64 are 22.
MIN_NONCE, MAX_NONCE = 22, 64
#: What a client is told that has not signed (RFC 9421 section 5.1).
ACCEPT_SIGNATURE = f'client={COMPONENTS};created;expires;nonce;keyid;tag="{TAG}"'

_NEEDED = {"created", "expires", "nonce", "keyid", "tag"}
_TOKEN = frozenset(string.ascii_letters + string.digits + "-_.~+/=:")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Claim(msgspec.Struct, frozen=True):
    """What a client says about its request, and signed."""

    keyid: str
    created: int  #: Unix seconds
    expires: int
    nonce: str
    body_sha256: bytes
    signature: bytes
    base: bytes  #: what the signature is over

    @property
    def nonce_key(self) -> bytes:
        """16 bytes that stand for this nonce of this client's."""
        return hashlib.sha256(f"{self.keyid}\n{self.nonce}".encode()).digest()[:16]

    @property
    def counts_until(self) -> int:
        """The last Unix second at which ``judge`` lets it pass."""
        return self.expires + SKEW_S


def read(headers: Iterable[tuple[bytes, bytes]], method: str, target_uri: str) -> Claim:
    """Read the three header lines of a request.

    Args:
        headers: (lowercased name, value) pairs.
        method: as it was sent.
        target_uri: this worker's ``base_url`` with the request's path and query.

    Raises:
        Refused: client_signature_missing, client_signature_malformed.
    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in HEADERS:
            if name in found:
                raise _malformed(f"there are two {name.decode()} header lines")
            found[name] = value.decode("latin-1")
    missing = [name.decode() for name in HEADERS if name not in found]
    if missing:
        raise Refused(
            "client_signature_missing",
            f"This worker takes requests only that its clients sign; missing: {', '.join(missing)}."
            " docs/security.md says how, examples/strict_client.py does it.",
        )
    inputs, signed, content_digest = (found[name] for name in HEADERS)
    label, params = _member(inputs, "signature-input")
    values = _values(params)
    same_label, signature = _member(signed, "signature")
    if label != same_label:
        raise _malformed("signature and signature-input have different labels")
    algorithm, digest = _member(content_digest, "content-digest")
    if algorithm != "sha-256":
        raise _malformed("content-digest must be one sha-256")
    base = signature_base(
        [("@method", method), ("@target-uri", target_uri), ("content-digest", content_digest)],
        params,
    )
    return Claim(
        keyid=_string(values["keyid"], "keyid"),
        created=_second(values["created"], "created"),
        expires=_second(values["expires"], "expires"),
        nonce=_nonce(values["nonce"]),
        body_sha256=_bytes(digest, 32, "content-digest"),
        signature=_bytes(signature, 64, "signature"),
        base=base,
    )


def judge(claim: Claim, now: int) -> None:
    """Return where the claim counts at ``now`` (Unix seconds).

    Raises:
        Refused: client_signature_expired, client_signature_malformed.
    """
    if not 0 < claim.expires - claim.created <= MAX_LIFE_S:
        raise _malformed(f"expires must be after created, by {MAX_LIFE_S} s at most")
    if claim.created > now + SKEW_S:
        raise Refused(
            "client_signature_expired",
            f"The signature was made {claim.created - now} s ahead of this worker's clock:"
            f" clocks may differ by {SKEW_S} s.",
        )
    if now > claim.counts_until:
        raise Refused(
            "client_signature_expired",
            f"The signature expired {now - claim.expires} s ago by this worker's clock: sign each"
            " request anew, when it is sent.",
        )


def signature_base(components: Iterable[tuple[str, str]], params: str) -> bytes:
    """The text that is signed (RFC 9421 section 2.5)."""
    lines = [f'"{name}": {value}' for name, value in components]
    return "\n".join([*lines, f'"@signature-params": {params}']).encode("latin-1")


def base_url(url: str) -> str:
    """How a worker's http or https URL begins in what is signed: lowercase scheme and host, no port
    where it is the scheme's own, no slash at the end.
    """
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def key_bytes(text: str) -> bytes:
    """The 32 bytes of an Ed25519 public key in base64.

    Raises:
        ValueError: it is none.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ValueError("an Ed25519 public key is 32 bytes in base64")
    return raw


def _malformed(reason: str) -> Refused:
    return Refused(
        "client_signature_malformed",
        f"The request's signature is not of the form that this worker takes: {reason}."
        " docs/security.md says how it is written.",
    )


def _member(text: str, name: str) -> tuple[str, str]:
    """The one member of a dictionary of structured fields: its key and the rest."""
    key, equals, rest = text.partition("=")
    if not equals or not key or not _TOKEN.issuperset(key):
        raise _malformed(f"{name} must be one member, label=value")
    return key, rest


def _values(params: str) -> dict[str, str]:
    covered, _, rest = params.partition(";")
    if covered != COMPONENTS:
        raise _malformed(f"signature-input must cover {COMPONENTS}")
    values: dict[str, str] = {}
    for part in rest.split(";"):
        name, _, value = part.partition("=")
        if name in values:
            raise _malformed(f"signature-input says {name[:20]!r} twice")
        values[name] = value
    if values.pop("alg", '"ed25519"') != '"ed25519"':
        raise _malformed('alg must be "ed25519", or be left out')
    if values.keys() != _NEEDED:
        raise _malformed(f"signature-input must say {', '.join(sorted(_NEEDED))}, and no more")
    if values["tag"] != f'"{TAG}"':
        raise _malformed(f'tag must be "{TAG}"')
    return values


def _string(text: str, name: str) -> str:
    inner = text[1:-1]
    if not inner or text != f'"{inner}"' or not _TOKEN.issuperset(inner):
        raise _malformed(f"{name} must be a text in quotes, of letters, digits and -_.~+/=:")
    return inner


def _nonce(text: str) -> str:
    nonce = _string(text, "nonce")
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise _malformed(f"nonce must have {MIN_NONCE} to {MAX_NONCE} characters: 128 random bits")
    return nonce


def _second(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise _malformed(f"{name} must be a whole number of Unix seconds")
    return int(text)


def _bytes(text: str, size: int, name: str) -> bytes:
    try:
        raw = base64.b64decode(text[1:-1], validate=True)
    except ValueError:
        raw = b""
    if len(raw) != size or text != f":{base64.b64encode(raw).decode()}:":
        raise _malformed(f"{name} must be the base64 of {size} bytes between colons, and no more")
    return raw
