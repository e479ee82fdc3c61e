"""``POST /pyworker/update``: the engine asks the instance to take a new version of its worker.

Source: the public PyWorker. The bearer token is the engine's own (``MASTER_TOKEN``); what is asked
for is a file (``/.force_update``) that the instance's start script looks for. Compared in constant
time, as digests, so that not even its length shows; never written anywhere. It must not know what
the file is for.
"""

from __future__ import annotations

import hashlib
import hmac
import logging

from ingress.errors import ErrorKind, Problem
from ingress.exchange import Exchange

_log = logging.getLogger("ingress")


class Management:
    """Answers it.

    Args:
        token: the engine's; empty: nobody may ask.
        update_file: the file that is written.
    """

    def __init__(self, token: str, update_file: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest() if token else b""
        self._update_file = update_file

    def refusal(self, exchange: Exchange) -> Problem | None:
        """Why a request to it is refused by its head; None: it is not."""
        if exchange.method != b"POST":
            return Problem(ErrorKind.METHOD_NOT_ALLOWED, headers=b"allow: POST\r\n")
        given = (exchange.header(b"authorization") or b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(hashlib.sha256(given).digest(), self._digest):
            return Problem(ErrorKind.BAD_TOKEN, "send the engine's token as a bearer")
        return None

    def update(self, exchange: Exchange) -> None:
        """Write the file, and answer."""
        try:
            with open(self._update_file, "wb"):
                pass
        except OSError as error:
            text = f"{self._update_file} cannot be written: {error.strerror}"
            _log.error("%s", text)
            exchange.fail(Problem(ErrorKind.INTERNAL, text))
            return
        _log.info("an update was asked for: %s is written", self._update_file)
        exchange.respond(200, b"content-type: application/json\r\n", b'{"ok": true}')
