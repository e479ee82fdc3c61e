"""The port that clients reach: bound before anything runs, kept for the run, lent to each ingress.

Law: it belongs to the run, not to a process. So nobody else can take it while an ingress is away,
and who connects meanwhile, or was connected and not yet accepted, waits in the kernel for the next
ingress instead of being refused. Several ingress processes have a share each, among which the
kernel spreads the clients. Nobody listens before the first ingress does: until then clients are
refused.

It knows the system's sockets only.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Any


class ClientPort:
    """The sockets of one port.

    Args:
        host: address or name; "": all addresses.
        port: TCP port, not 0.
        shares: processes that will serve it.

    Raises:
        OSError: it cannot be had.
    """

    def __init__(self, host: str, port: int, shares: int) -> None:
        self._shared = shares > 1
        self._shares: list[list[socket.socket]] = []
        flags = socket.AI_PASSIVE
        known = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        places = list(dict.fromkeys((family, address) for family, _, _, _, address in known))
        try:
            for _ in range(shares):
                self._shares.append([])
                self._bind_all(places, self._shares[-1])
        except OSError:
            self.close()
            raise

    def fds(self, share: int) -> tuple[int, ...]:
        """The descriptors of one share, for a process that inherits them. They stay the same."""
        return tuple(each.fileno() for each in self._shares[share])

    def part_with(self, share: int) -> bool:
        """Leave a share to the process that has it, which is to close it: others take its clients.

        Its successor gets another share. False: the only one is kept for the successor.
        """
        if self._shared:
            for each in self._shares[share]:
                with self._bound(each.family, each.getsockname()) as fresh:
                    os.dup2(fresh.fileno(), each.fileno(), inheritable=False)
        return self._shared

    def close(self) -> None:
        """Let go of it: when every process that it was lent to has closed it, it is closed."""
        while self._shares:
            for each in self._shares.pop():
                each.close()

    def _bind_all(self, places: Iterable[tuple[int, Any]], into: list[socket.socket]) -> None:
        missing: OSError | None = None
        for family, address in places:
            try:
                into.append(self._bound(family, address))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # "localhost" where there is no IPv6
        if missing is not None and not into:
            raise missing

    def _bound(self, family: int, address: Any) -> socket.socket:
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
            # while nobody listens, another program that sets it could have the port as well
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError:
            bound.close()
            raise
        return bound


def borrowed(fds: Iterable[int]) -> list[socket.socket]:
    """The sockets of a share in the process that it was lent to, ready to be listened on."""
    sockets = []
    for fd in fds:
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
        # connections of a worker before this one may still linger on the port
        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sockets
