"""The port that clients reach where one ingress serves it: bound before anything runs, kept for the
run, and lent to each ingress in turn.

Law: it belongs to the run, not to a process. So nobody else can take it while ingress is away, and
who connects meanwhile, or was connected and not yet accepted, waits in the kernel for the next
ingress instead of being refused. Nobody listens before the first ingress does: until then clients
are refused. Several ingress processes do without it: the kernel spreads the clients among those
that listen, and one that is away is passed over.

It knows the system's sockets only.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Any

from supervisor.settings_sources import Fault, SettingsError


class ClientPort:
    """The sockets of one port, one for each address of its host.

    Args:
        host: address or name; "": all addresses.
        port: TCP port, not 0.

    Raises:
        OSError: it cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._sockets = _bound(host, port)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors, for a process that inherits them."""
        return tuple(each.fileno() for each in self._sockets)

    def move(self, host: str) -> None:
        """Bind it on another host, before anybody serves it. Raises SettingsError."""
        if host == self._host:
            return
        before = self._sockets
        try:
            _let_in(before, True)
            self._sockets = _bound(host, self._port)
        except OSError as error:
            _let_in(before, False)
            raise SettingsError([unbindable(host, self._port, error)]) from None
        self._host = host
        for each in before:
            each.close()

    def close(self) -> None:
        """Let go of it: when every process that it was lent to has closed it, it is closed."""
        while self._sockets:
            self._sockets.pop().close()


def borrowed(fds: Iterable[int]) -> list[socket.socket]:
    """The sockets in the process that they were lent to."""
    sockets = []
    for fd in fds:
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets


def listen(bound: socket.socket, backlog: int) -> None:
    """Be the first, or the next, who listens on it. Raises OSError: another program does."""
    # connections of a worker before this one may still linger on the port
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.listen(backlog)


def unbindable(host: str, port: int, error: OSError) -> Fault:
    """What a person can do about a port that cannot be bound."""
    text = f"cannot bind port {port} of {host}: {error.strerror}"
    if isinstance(error, PermissionError):
        return Fault("worker.port", text, "choose a port above 1023")
    if error.errno == errno.EADDRINUSE:
        return Fault("worker.port", text, "stop who holds it, or choose another port")
    return Fault("worker.host", text, "name an address of this machine, or 0.0.0.0")


def _bound(host: str, port: int) -> list[socket.socket]:
    flags, kind = socket.AI_PASSIVE, socket.SOCK_STREAM
    try:
        known = socket.getaddrinfo(host or None, port, type=kind, flags=flags)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, "no host has such a name") from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((one[0], one[4]) for one in known):
        try:
            sockets.append(_bind(family, address))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for each in sockets:
                    each.close()
                raise
            missing = error  # "localhost" where there is no IPv6
    if missing is not None and not sockets:
        raise missing
    return sockets


def _bind(family: int, address: Any) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        _let_in([bound], False)
    except OSError:
        bound.close()
        raise
    return bound


def _let_in(sockets: Iterable[socket.socket], others: bool) -> None:
    """While nobody listens, whoever sets SO_REUSEADDR could have the port as well, or may not."""
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, others)
