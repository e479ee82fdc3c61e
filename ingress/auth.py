"""The authenticator: whether the engine sent this client to this worker.

Responsible for verifying auth_data's signature with the engine's public key, for refusing what was
signed for another worker, and for refusing replays where the scheme can tell them.

Two schemes, both RSA PKCS#1 v1.5 over SHA-256 of a JSON text with an indent of 4 (source: the
public PyWorker): ``url`` (today's) signs ``{"url"}`` alone, so that one signature serves every
request to one worker; ``2024`` signs ``{"cost", "endpoint", "reqnum", "url"}`` in this order, once
per request. ``any`` tries them in this order.

Law: nothing that a client can send raises anything but ``Refused``, and a verdict does not depend
on what happens to be remembered. Only what verified is remembered, so a flood of forgeries costs
one or two verifications each (about 30 µs) and no memory. A signature of today's scheme lets its
bearer in, so it is looked up by a hash (Python's, keyed anew in every process), never compared
letter by letter with one that is remembered: how long that takes says nothing of a guess.

Replays are known to one process: a worker with several ingress processes, or one that restarted,
takes a 2024 message once more per process, and before its first current one also one that lies
behind every window. The file of used nonces (``nonce_file.py``) is no place for them: it forgets by
time, and these messages say no time at which they end.

It must not know HTTP, sockets or routes.
"""

from __future__ import annotations

import base64
import heapq
import json
from typing import Literal
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ingress.envelope import AuthData, Refused

_DEFAULT_PORTS = {"http": 80, "https": 443}
_KEY_BITS = range(1024, 16384 + 1)
#: 2024 messages remembered per step of the replay window. An engine that counts as it should
#: needs one; the surplus is for one that gives a number out again.
_MESSAGES_PER_STEP = 4

_PADDING = PKCS1v15()
_HASH = SHA256()


class Authenticator:
    """Checks auth_data, one request after the other.

    ``mode``, ``scheme``, ``check_url``, ``replay_window`` and ``cache_entries`` are the settings of
    section ``auth``; ``expected_url`` is this worker's public URL. Raises ValueError when that is
    to be checked and is no http or https URL.
    """

    __slots__ = (
        "_cache_entries",
        "_expected",
        "_key",
        "_mode",
        "_pem",
        "_replays",
        "_scheme",
        "_suspicion",
        "_verified",
    )

    def __init__(
        self,
        mode: Literal["signature", "none"],
        scheme: Literal["any", "url", "2024"],
        expected_url: str,
        check_url: bool,
        replay_window: int,
        cache_entries: int,
    ) -> None:
        self._mode = mode
        self._scheme = scheme
        self._expected = _normalised(expected_url) if check_url and mode != "none" else ()
        if self._expected is None:
            raise ValueError(
                f"the worker's public URL {expected_url!r} is no http(s) URL: set"
                " worker.public_url, or auth.check_url = false"
            )
        self._cache_entries = cache_entries
        self._pem = ""
        self._key: RSAPublicKey | None = None
        self._verified: dict[tuple[str, str], None] = {}
        self._replays = _Replays(replay_window)
        self._suspicion = False

    @property
    def lacks_key(self) -> bool:
        """No request can pass: signatures are checked, and no key is known."""
        return self._mode != "none" and self._key is None

    def set_key(self, pem: str) -> None:
        """Take the engine's public key (PEM text); what another key verified is forgotten.

        Raises ValueError for what is no RSA public key of 1024 to 16384 bits; the key from before
        stays in use.
        """
        if self._key is not None and pem == self._pem:
            return
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm) as fault:
            raise ValueError(f"the engine's public key is no PEM text of a key: {fault}") from None
        if not isinstance(key, RSAPublicKey) or key.key_size not in _KEY_BITS:
            raise ValueError("the engine's public key is no RSA key of 1024 to 16384 bits")
        self._pem = pem
        self._key = key
        self._verified.clear()
        self._replays = _Replays(self._replays.window)

    def take_suspicion(self) -> bool:
        """Return whether a signature failed, or no key was known, since the last call.

        One forger is enough to raise it: whoever fetches the key again limits how often.
        """
        suspicion = self._suspicion
        self._suspicion = False
        return suspicion

    def check(self, auth: AuthData | None) -> None:
        """Return when the engine sent this client here.

        Raises ``Refused``: signature_missing, no_public_key, foreign_url, bad_signature, replayed.
        """
        if self._mode == "none":
            return
        if auth is None or not auth.signature:
            raise Refused(
                "signature_missing",
                "auth_data has no signature: ask the engine's /route/ for a worker, and send its"
                " whole answer as auth_data.",
            )
        if self._key is None:
            self._suspicion = True
            raise Refused(
                "no_public_key",
                "The engine's public key is not known yet, so no signature can be checked: try"
                " again soon.",
            )
        pair = (auth.url, auth.signature)
        if pair in self._verified:
            return
        # Before the signature: it is cheap, the client knows this worker's URL anyway, and a
        # client of another worker must not make the engine's key look suspect.
        if self._expected and _normalised(auth.url) != self._expected:
            raise Refused(
                "foreign_url",
                "auth_data was signed for another worker's URL: send the request to auth_data.url.",
            )
        self._verify(self._key, auth, pair)

    def _verify(self, key: RSAPublicKey, auth: AuthData, pair: tuple[str, str]) -> None:
        signature = _decoded(auth.signature)
        if self._scheme != "2024" and _is_signed(key, signature, _url_message(auth)):
            if len(self._verified) >= self._cache_entries:
                del self._verified[next(iter(self._verified))]
            self._verified[pair] = None
            return
        message = _message_2024(auth)
        if self._scheme != "url" and _is_signed(key, signature, message):
            if not self._replays.accept(message, auth.reqnum):
                raise Refused(
                    "replayed",
                    "auth_data was used before, or is too old: ask the engine's /route/ again.",
                )
            return
        self._suspicion = True
        raise Refused(
            "bad_signature",
            "auth_data.signature was not made by this worker's engine for this auth_data: ask the"
            " engine's /route/ again, and send its answer unchanged.",
        )


class _Replays:
    """Which 2024 messages were accepted.

    Law: no message is accepted twice. What is forgotten, to hold at most 4 messages per step of
    the window, raises the oldest reqnum that is accepted at all.
    """

    __slots__ = ("_accepted", "_floor", "_messages", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self._floor: int | None = None
        self._messages: set[str] = set()
        self._accepted: list[tuple[int, str]] = []  # a heap, lowest reqnum first

    def accept(self, message: str, reqnum: int) -> bool:
        """Remember a message; False when it was accepted before or lies behind the window."""
        floor = reqnum - self.window if self._floor is None else self._floor
        if reqnum < floor or message in self._messages:
            return False
        self._messages.add(message)
        heapq.heappush(self._accepted, (reqnum, message))
        floor = max(floor, reqnum - self.window)
        if len(self._accepted) > _MESSAGES_PER_STEP * (self.window + 1):
            floor = max(floor, self._accepted[0][0] + 1)
        while self._accepted and self._accepted[0][0] < floor:
            self._messages.discard(heapq.heappop(self._accepted)[1])
        self._floor = floor
        return True


def _decoded(text: str) -> bytes:
    """The bytes of a base64 text. Of its spellings only the one that an encoder writes counts:
    no blanks, no other alphabet, nothing after the padding, no stray bits before it.
    """
    try:
        signature = base64.b64decode(text, validate=True)
    except ValueError:
        signature = b""
    if base64.b64encode(signature).decode() != text:
        raise Refused(
            "bad_signature",
            "auth_data.signature is not base64: ask the engine's /route/ for a worker, and send its"
            " whole answer as auth_data.",
        )
    return signature


def _is_signed(key: RSAPublicKey, signature: bytes, message: str) -> bool:
    try:
        key.verify(signature, message.encode(), _PADDING, _HASH)
    except InvalidSignature:
        return False
    return True


def _url_message(auth: AuthData) -> str:
    return json.dumps({"url": auth.url}, indent=4, sort_keys=True)


def _message_2024(auth: AuthData) -> str:
    fields = {
        "cost": auth.cost,
        "endpoint": auth.endpoint,
        "reqnum": auth.reqnum,
        "url": auth.url,
    }
    return json.dumps(fields, indent=4)


def _normalised(url: str) -> tuple[str | int, ...] | None:
    """Return what two spellings of one worker's URL share; None for what is no worker's URL.

    Only printable ASCII is one: what lies beyond it, urlsplit drops in places, or reads as ASCII.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    default_port = _DEFAULT_PORTS.get(parts.scheme)
    if default_port is None or not parts.hostname or "@" in parts.netloc:
        return None
    return (
        parts.scheme,
        parts.hostname,
        default_port if port is None else port,
        parts.path.rstrip("/"),
        parts.query,
        parts.fragment,
    )
