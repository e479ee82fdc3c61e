"""TCP ports of this machine: which are free, and kept for those who shall have them. A leaf."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Container

#: Ports that one process keeps; more than a worker needs. The oldest is let go of.
MAX_KEPT = 64
_kept: deque[int] = deque()  # descriptors


def free_port(host: str, avoid: Container[int] = ()) -> int:
    """A TCP port that nobody listens on, and that is not to be avoided.

    It is kept for whoever is told of it, until this process ends: bound here, though not listened
    on, so that the system gives it to no other program that asks for any port, or connects from
    one. A server that sets SO_REUSEADDR, as servers do, can listen on it, and again later.
    """
    while True:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            if port in avoid:
                continue
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _kept.append(probe.detach())
        if len(_kept) > MAX_KEPT:
            os.close(_kept.popleft())
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
