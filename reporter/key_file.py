"""The engine's public key, kept beside the events socket for an ingress that starts.

Without it a new ingress would refuse signed requests until the reporter has spoken, which may be
seconds away when both died. It is no secret, and it is a hint: the reporter's word, which comes
with every session, replaces it. What cannot be written or read costs only that.

It must not know who fetches the key, nor what is checked with it.
"""

from __future__ import annotations

import logging
import os

FILE_NAME = "engine_key.pem"
#: A key has some 500 bytes; more is none.
MAX_CHARS = 65_536
_log = logging.getLogger("reporter")


def write(address: str, pem: str) -> None:
    """Keep the key, whole or not at all.

    Args:
        address: of the events socket, ``ipc://…``.
        pem: the key as PEM text.
    """
    path = _beside(address)
    try:
        with open(f"{path}.new", "w", encoding="utf-8", opener=_private) as file:
            file.write(pem)
        os.replace(f"{path}.new", path)
    except OSError as error:
        _log.warning("the engine's key is not kept on disk: %s", error.strerror)


def read(address: str) -> str:
    """The key that was kept, as PEM text; "": none was."""
    try:
        with open(_beside(address), encoding="utf-8") as file:
            return file.read(MAX_CHARS)
    except (OSError, UnicodeDecodeError):
        return ""


def _beside(address: str) -> str:
    return os.path.join(os.path.dirname(address.removeprefix("ipc://")), FILE_NAME)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
