"""The strict door: before the door itself, each request must bear its client's own signature.

Only there where ``auth.clients`` names keys: without them the door stands alone and this costs
nothing. It comes on top of the engine's signature, not in its place. The head is enough to refuse a
request, so a stranger's body is not even read; what was signed of the body is compared when it has
come. Each signed request passes once, whichever process it reaches.

What may be asked of the worker by other means stays as it is: ``/pyworker/update`` by the engine's
token, and the plain port of this machine by a session's proof.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ingress import message_signature
from ingress.envelope import Refused
from ingress.errors import KINDS, ErrorKind, Problem
from ingress.exchange import Application, Exchange
from ingress.message_signature import ACCEPT_SIGNATURE, HEADERS, Claim
from ingress.nonce_file import NonceFile
from ingress.nonces import Verdict
from ingress.routes import UPDATE_PATH
from supervisor.settings import Settings

#: After which a client may try again whose nonce could not be looked up.
NONCE_RETRY_S = 1.0
_ACCEPT = f"accept-signature: {ACCEPT_SIGNATURE}\r\n".encode()


def guarded(door: Application, settings: Settings, refuse: Callable[[str], None]) -> Application:
    """The application that serves clients: ``door``, behind a strict one where that is wanted.

    ``refuse`` counts a refusal by its kind.
    """
    if not settings.auth.clients:
        return door
    worker = settings.worker
    return StrictDoor(
        door, settings.auth.clients, worker.public_url, NonceFile(worker.state_dir), refuse
    )


class StrictDoor:
    """An ``Application`` in front of another.

    Args:
        door: gets what passes.
        clients: name → Ed25519 public key, 32 bytes in base64.
        url: this worker's public URL, which clients sign.
        nonces: knows which were used.
        refuse: counts a refusal by its kind.
    """

    def __init__(
        self,
        door: Application,
        clients: Mapping[str, str],
        url: str,
        nonces: NonceFile,
        refuse: Callable[[str], None],
    ) -> None:
        self._door = door
        self._keys = {
            name: Ed25519PublicKey.from_public_bytes(message_signature.key_bytes(text))
            for name, text in clients.items()
        }
        self._base_url = message_signature.base_url(url)
        self._nonces = nonces
        self._refuse = refuse
        self.on_writable = door.on_writable
        self.on_disconnect = door.on_disconnect

    def on_head(self, exchange: Exchange) -> ErrorKind | Problem | None:
        """Refuse what no client of ours signed, before its body is read."""
        problem = self._door.on_head(exchange)
        if problem is not None or exchange.path == UPDATE_PATH:
            return problem
        try:
            exchange.context = self._claim(exchange, int(time.time()))
        except Refused as refused:
            missing = refused.kind == "client_signature_missing"
            kind = KINDS[refused.kind]
            return Problem(kind, refused.message, headers=_ACCEPT if missing else b"")
        return None

    def keep(self) -> None:
        """Call now and then: look after the memory of used nonces."""
        self._nonces.keep(int(time.time()))

    def on_request(self, exchange: Exchange) -> None:
        """Refuse another body than was signed, and what has come before."""
        if exchange.path != UPDATE_PATH:
            claim, exchange.context = exchange.context, None
            problem = self._fault(exchange, claim)
            if problem is not None:
                self._refuse(problem.kind)
                exchange.fail(problem)
                return
            # they are about the request as it came; a worker.py gets another body
            exchange.headers = [line for line in exchange.headers if line[0] not in HEADERS]
        self._door.on_request(exchange)

    def _claim(self, exchange: Exchange, now: int) -> Claim:
        target = exchange.path + (b"?" + exchange.query if exchange.query else b"")
        claim = message_signature.read(
            exchange.headers,
            exchange.method.decode("latin-1"),
            self._base_url + target.decode("latin-1"),
        )
        key = self._keys.get(claim.keyid)
        if key is None:
            text = f"keyid {claim.keyid[:64]!r} is none of this worker's auth.clients."
            raise Refused("unknown_client_key", text)
        message_signature.judge(claim, now)
        try:
            key.verify(claim.signature, claim.base)
        except InvalidSignature:
            raise Refused(
                "bad_client_signature",
                f"The signature was not made by {claim.keyid[:64]!r} for this request: sign POST,"
                f" {self._base_url} with path and query, and the Content-Digest as it is sent.",
            ) from None
        return claim

    def _fault(self, exchange: Exchange, claim: Claim) -> Problem | None:
        digest = hashlib.sha256(exchange.body).digest()
        if not hmac.compare_digest(digest, claim.body_sha256):
            text = "The body is not the one that was signed: its SHA-256 is not Content-Digest's."
            return Problem(ErrorKind.BODY_CHANGED, text)
        now = int(time.time())
        verdict = self._nonces.take(claim.nonce_key, claim.counts_until, now)
        if verdict is Verdict.USED:
            text = "A request with this nonce has come before: sign each request anew."
            return Problem(ErrorKind.NONCE_USED, text)
        if verdict is Verdict.UNKNOWN:
            text = "Whether this request has come before cannot be told now: try again, signed anew"
            return Problem(ErrorKind.NONCE_UNKNOWN, text, NONCE_RETRY_S)
        return None
