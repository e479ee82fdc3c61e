"""TCP ports of this machine: which are free. A leaf."""

from __future__ import annotations

import errno
import socket
from collections.abc import Container


def free_port(host: str, avoid: Container[int] = ()) -> int:
    """A TCP port that nobody listens on at this moment, and that is not to be avoided."""
    while True:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in avoid:
            return port


def is_free(host: str, port: int) -> bool:
    """Nobody listens on this TCP port (what cannot be found out counts as free)."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
