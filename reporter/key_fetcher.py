"""The hands of the keyring: the engine's public key is fetched here, when it is due, and before an
engine that may be another one hears of this worker.

Who is told of a key, and of its lack, is the reporter's matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from reporter.engine_client import EngineClient, EngineError
from reporter.keyring import Keyring

#: A key that is missing for longer than this is an error that the engine should hear of.
KEY_PATIENCE_S = 10.0
_log = logging.getLogger("reporter")


class KeyFetcher:
    """Fetches the key from the engine's addresses.

    Args:
        addresses: the engine's; none: no key is wanted.
        engine: asks them.
        on_key: called with PEM text that is new.
        on_lack: called with the reason when none has been known for ``KEY_PATIENCE_S``.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        engine: EngineClient,
        on_key: Callable[[str], None],
        on_lack: Callable[[str], None],
    ) -> None:
        self.ring = Keyring(addresses)
        self._engine = engine
        self._on_key, self._on_lack = on_key, on_lack
        self._started_at = time.monotonic()

    async def fetch(self, address: str) -> None:
        """As ``ring.step`` says."""
        try:
            pem = await self._engine.fetch_key(address)
        except EngineError as error:
            now = time.monotonic()
            self.ring.failed(now)
            if not self.ring.pem and now - self._started_at > KEY_PATIENCE_S:
                _log.warning("no public key yet: %s", error)
                self._on_lack(str(error))
            return
        if self.ring.fetched(pem, time.monotonic()):
            self._on_key(pem)

    async def renew(self, address: str) -> EngineError | None:
        """If it is stale. Returns why nothing else need be asked of this address."""
        ring = self.ring
        if not ring.stale:
            return None
        ring.stale = False
        try:
            pem = await self._engine.fetch_key(address)
        except EngineError as error:
            if error.kind == "unreachable":
                ring.doubt()
                return error
            ring.suspect()  # one that is slow, or has no key, may hear of us all the same
            return None
        if ring.learnt(pem, time.monotonic()):
            self._on_key(pem)
        return None
