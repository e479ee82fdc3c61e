"""The engine's RSA key and the signatures that it makes.

Responsible for one private key and for the two forms of signed text. Its law: the private key
leaves this room only into the file that ``--key`` names, readable by its owner alone. It must not
know who is signed for, nor why.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

Scheme = Literal["url", "2024"]

#: Signatures that are remembered in scheme "url", where one URL has one signature.
MAX_REMEMBERED = 1024


class BadKey(Exception):
    """The key file cannot be used; the text says why."""


def signed_text(scheme: Scheme, *, cost: float, endpoint: str, reqnum: int, url: str) -> bytes:
    """The bytes that are signed.

    Scheme "url" is today's: the URL alone, keys sorted. Scheme "2024" is the whole of auth_data in
    the order of its first definition, with ``cost`` written as it was sent.
    """
    if scheme == "url":
        return json.dumps({"url": url}, indent=4, sort_keys=True).encode()
    signed = {"cost": cost, "endpoint": endpoint, "reqnum": reqnum, "url": url}
    return json.dumps(signed, indent=4).encode()


class Signer:
    """Signs with one RSA key of 2048 bits: PKCS#1 v1.5, SHA-256, base64."""

    def __init__(self, key: rsa.RSAPrivateKey, scheme: Scheme) -> None:
        self._key = key
        self._scheme = scheme
        self._remembered: dict[bytes, str] = {}
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        #: The public key as PEM text (SubjectPublicKeyInfo).
        self.public_pem = public.decode()

    @classmethod
    def generate(cls, scheme: Scheme) -> Signer:
        """A signer with a new key. Takes about a tenth of a second."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=2048), scheme)

    @classmethod
    def from_file(cls, path: Path, scheme: Scheme) -> Signer:
        """A signer with the key in ``path`` (PEM, no passphrase), made there if there is none.

        Raises BadKey.
        """
        try:
            if not path.exists():
                signer = cls.generate(scheme)
                signer.save(path)
                return signer
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise BadKey(f"cannot use the key file {path}: {error}") from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise BadKey(f"cannot use the key file {path}: it holds no RSA private key")
        return cls(key, scheme)

    def save(self, path: Path) -> None:
        """Write the private key, whole or not at all. Raises OSError."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)

    def sign(self, *, cost: float, endpoint: str, reqnum: int, url: str) -> str:
        """The signature of a route, in base64."""
        text = signed_text(self._scheme, cost=cost, endpoint=endpoint, reqnum=reqnum, url=url)
        known = self._remembered.get(text)
        if known is not None:
            return known
        signature = self._key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        encoded = base64.b64encode(signature).decode()
        if self._scheme == "url" and len(self._remembered) < MAX_REMEMBERED:
            self._remembered[text] = encoded
        return encoded
