"""The serverless engine's HTTP side: two kinds of report out, its public key in.

Law: 2xx is accepted, unless it claims to be JSON and is none (then something else than an engine
answered); everything else is an ``EngineError`` with a text for people. The token goes
into bodies here and nowhere else; neither it nor a body is ever logged or part of an error. One
call never outlasts ``timeout_s``, follows no redirect and reads at most 64 KiB.

When to call, and whom, is ``outbox.py``'s and ``keyring.py``'s business. aiohttp and cryptography
are imported at the first use, for a quick start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from reporter.records import Row
from supervisor.settings import EngineSettings

if TYPE_CHECKING:
    import aiohttp

MAX_BODY_BYTES = 65_536
MAX_CONNECTIONS = 8
MIN_KEY_BITS = 1_024
MAX_KEY_BITS = 16_384


class EngineError(Exception):
    """The engine did not accept a post, or gave no usable key.

    Attributes:
        kind: ``timeout``, ``unreachable``, ``refused`` (an answer other than 2xx) or ``bad_key``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EngineClient:
    """Posts to the engine's addresses.

    Args:
        settings: the token and the timeout.
        worker_id: the instance's id.
        mask: takes secrets out of a text.
    """

    def __init__(
        self, settings: EngineSettings, worker_id: int, mask: Callable[[str], str]
    ) -> None:
        self._token = settings.token
        self._timeout_s = settings.timeout_s
        self._worker_id = worker_id
        self._mask = mask
        self._session: aiohttp.ClientSession | None = None

    async def post_status(self, address: str, body: dict[str, object]) -> None:
        """POST /worker_status/ (the protocol's status report); adds ``mtoken``.

        Raises:
            EngineError: it was not accepted.
        """
        await self._call(address, "worker_status", {**body, "mtoken": self._token})

    async def post_requests(self, address: str, rows: Sequence[Row]) -> None:
        """POST /delete_requests/: these requests ended.

        Raises:
            EngineError: it was not accepted.
        """
        body = {
            "worker_id": self._worker_id,
            "mtoken": self._token,
            "requests": [row.body() for row in rows],
        }
        await self._call(address, "delete_requests", body)

    async def fetch_key(self, address: str) -> str:
        """GET /pubkey/: the engine's RSA public key as PEM text.

        Raises:
            EngineError: no answer, or no RSA public key of 1,024 to 16,384 bits.
        """
        raw = await self._call(address, "pubkey", None)
        try:
            return public_key_pem(raw)
        except ValueError as error:
            raise EngineError("bad_key", f"{self._name(address)}/pubkey/: {error}") from None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _name(self, address: str) -> str:
        """The address without what a URL may hide: user, password, query."""
        try:
            parts = urlsplit(address)
        except ValueError:
            return "the engine's address"
        return self._mask(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

    async def _call(self, address: str, page: str, body: object) -> bytes:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=60.0),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
            )
        url = f"{address.rstrip('/')}/{page}/"
        name = f"{self._name(address).rstrip('/')}/{page}/"
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                url,
                data=None if body is None else msgspec.json.encode(body),
                headers={} if body is None else {"Content-Type": "application/json"},
                allow_redirects=False,
            ) as answer:
                if not 200 <= answer.status < 300:
                    raise EngineError("refused", f"{name} answered HTTP {answer.status}")
                raw = await _read(answer, whole=body is None)
                if answer.content_type == "application/json" and not _is_json(raw):
                    raise EngineError("refused", f"{name} answered what is no JSON")
                return raw
        except TimeoutError:
            raise EngineError("timeout", f"{name}: no answer in {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            text = self._mask(f"{type(error).__name__}: {error}")[:300]
            raise EngineError("unreachable", f"{name}: {text}") from None


async def _read(answer: aiohttp.ClientResponse, whole: bool) -> bytes:
    """The body, at most 64 KiB of it; where only the status counts, whatever comes of it."""
    import aiohttp

    parts: list[bytes] = []
    size = 0
    try:
        async for part in answer.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                answer.close()
                break
    except (aiohttp.ClientError, TimeoutError):
        if whole:
            raise
        return b""
    return b"".join(parts)[:MAX_BODY_BYTES]


def _is_json(raw: bytes) -> bool:
    """It is, or too little or too much of it was read to say so."""
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
    except msgspec.DecodeError:
        return not 0 < len(raw) < MAX_BODY_BYTES
    return True


def public_key_pem(raw: bytes) -> str:
    """PEM text of an RSA public key, checked.

    Raises:
        ValueError: it is none, says what is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        text = raw.decode("ascii").strip() + "\n"
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("the answer is no public key in PEM form") from None
    if not isinstance(key, RSAPublicKey):
        raise ValueError("the key is not an RSA key")
    if not MIN_KEY_BITS <= key.key_size <= MAX_KEY_BITS:
        raise ValueError(f"an RSA key of {key.key_size} bits is not acceptable")
    return text
