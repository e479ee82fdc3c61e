"""A client of a worker in strict mode: it signs each request with a key of its own.

    python examples/strict_client.py key client.pem --name alice
    python examples/strict_client.py ask --key client.pem --name alice \\
        --engine http://127.0.0.1:3100 --endpoint local --route /generate \\
        --payload '{"inputs": "the harbour", "parameters": {"max_new_tokens": 8}}'

The first makes a key and prints the line for the worker's worker.toml; the second asks the engine
for a worker and the worker for an answer. ``signed_headers`` is all that another client needs: it
is RFC 9421 (HTTP Message Signatures) with Ed25519 over the method, the URL and the body's digest
(RFC 9530). Only the standard library and ``cryptography`` are used.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

#: Seconds that a signature counts; a worker takes 60 at most.
LIFE_S = 30
_COMPONENTS = '("@method" "@target-uri" "content-digest")'
_DEFAULT_PORTS = {"http": 80, "https": 443}


def make_key(path: Path) -> Ed25519PrivateKey:
    """A new private key in ``path`` (PEM), which only this user may read and must not exist."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key in ``path``."""
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds no Ed25519 key")
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """What the worker is given: the public half, in base64."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def signed_headers(
    key: Ed25519PrivateKey,
    name: str,
    url: str,
    body: bytes,
    *,
    method: str = "POST",
    created: int | None = None,
    life_s: int = LIFE_S,
) -> dict[str, str]:
    """The three header lines that sign one request. Make them anew for each try.

    Args:
        name: what the worker calls the key, in ``auth.clients``.
        url: where the request goes: auth_data's url and the route, with a query if there is one.
        body: its bytes, exactly as they are sent.
        created: Unix seconds; None: now.
        life_s: how long it counts.
    """
    at = int(time.time()) if created is None else created
    digest = f"sha-256=:{_base64(hashlib.sha256(body).digest())}:"
    params = (
        f'{_COMPONENTS};created={at};expires={at + life_s};nonce="{secrets.token_urlsafe(16)}"'
        f';keyid="{name}";tag="lighterman-1"'
    )
    base = (
        f'"@method": {method}\n"@target-uri": {_target(url)}\n"content-digest": {digest}\n'
        f'"@signature-params": {params}'
    )
    return {
        "Content-Digest": digest,
        "Signature-Input": f"client={params}",
        "Signature": f"client=:{_base64(key.sign(base.encode()))}:",
    }


def _target(url: str) -> str:
    """The URL in one spelling: lowercase scheme and host, no port where it is the scheme's own."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{query}"


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """One POST: status and body, whatever the status."""
    lines = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, body, lines)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def routed(engine: str, endpoint: str, api_key: str, cost: float) -> dict[str, Any]:
    """auth_data of a ready worker; asks the engine until there is one."""
    wanted = {"endpoint": endpoint, "api_key": api_key, "cost": cost, "request_idx": 0}
    while True:
        status, answer = post(f"{engine}/route/", json.dumps(wanted).encode())
        told: dict[str, Any] = json.loads(answer)
        if "signature" in told:
            return told
        if status != 200:
            raise RuntimeError(f"the engine says {status}: {told}")
        wanted["request_idx"] = told.get("request_idx", 0)
        time.sleep(1)


def ask(args: argparse.Namespace) -> int:
    """One request, routed, signed and sent; returns the exit code."""
    key = load_key(args.key)
    auth_data = routed(args.engine, args.endpoint, args.api_key, args.cost)
    body = json.dumps({"auth_data": auth_data, "payload": json.loads(args.payload)}).encode()
    url = auth_data["url"].rstrip("/") + args.route
    status, answer = post(url, body, signed_headers(key, args.name, url, body))
    print(answer.decode(errors="replace"), file=sys.stdout if status < 400 else sys.stderr)
    return 0 if status < 400 else 1


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("key", help="make a key")
    made.add_argument("file", type=Path, help="where the private half goes")
    made.add_argument("--name", default="client", help="what the worker calls it")
    asked = commands.add_parser("ask", help="send one request")
    asked.add_argument("--key", type=Path, required=True, help="the private key's file")
    asked.add_argument("--name", default="client", help="what the worker calls it")
    asked.add_argument("--engine", default="http://127.0.0.1:3100", help="the engine's URL")
    asked.add_argument("--endpoint", default="local")
    asked.add_argument("--api-key", default="local", help="the endpoint's key at the engine")
    asked.add_argument("--cost", type=float, default=100.0)
    asked.add_argument("--route", required=True)
    asked.add_argument("--payload", required=True, help="JSON")
    args = parser.parse_args()
    try:
        return ask(args) if args.command == "ask" else new_key(args)
    except (OSError, ValueError, RuntimeError) as error:  # no file, no JSON, nobody there
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def new_key(args: argparse.Namespace) -> int:
    """A key in its file, and the worker's line for it on stdout; returns the exit code."""
    key = make_key(args.file)
    print(f'# in worker.toml:\n[auth]\nclients = {{ {args.name} = "{public_text(key)}" }}')
    return 0


if __name__ == "__main__":
    sys.exit(main())
