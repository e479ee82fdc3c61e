"""The port that belongs to the run: nobody else can have it, and who connects meanwhile waits."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from supervisor.client_port import ClientPort, borrowed, listen, unbindable
from supervisor.ports import free_port
from supervisor.settings_sources import SettingsError

HOST = "127.0.0.1"
#: Tries to have a port that cannot be had, and prints why not.
_CANNOT_BE_HAD = """
import os, socket, sys
from supervisor.client_port import ClientPort
open_before = os.listdir("/proc/self/fd")
with socket.create_server(("127.0.0.1", 0)) as taken:
    try:
        ClientPort(sys.argv[1], taken.getsockname()[1])
    except OSError as error:
        print(error)
assert os.listdir("/proc/self/fd") == open_before
"""


@pytest.fixture
def number() -> int:
    return free_port(HOST)


@pytest.fixture
def port(number: int) -> Iterator[ClientPort]:
    with closing(ClientPort("0.0.0.0", number)) as made:
        yield made


def served(port: ClientPort) -> socket.socket:
    """What a process that inherits it does with it."""
    (each,) = borrowed(map(os.dup, port.fds))
    listen(each, 100)
    each.settimeout(10.0)
    return each


def test_nobody_is_heard_before_somebody_serves_it(port: ClientPort, number: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, number), 10.0)


@pytest.mark.parametrize("host", [HOST, "0.0.0.0"])
def test_no_other_program_can_have_it(port: ClientPort, number: int, host: str) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host, number))


def test_who_connects_while_nobody_serves_it_waits_for_the_next(
    port: ClientPort, number: int
) -> None:
    with served(port):
        early = socket.create_connection((HOST, number), 10.0)
    late = socket.create_connection((HOST, number), 10.0)
    with early, late, served(port) as successor:
        heard = set()
        for _ in range(2):
            accepted, address = successor.accept()
            accepted.close()
            heard.add(address)
        assert heard == {early.getsockname(), late.getsockname()}


def test_it_can_be_had_again_at_once(number: int) -> None:
    """Although connections of the worker before linger on it."""
    for _ in range(2):
        with (
            closing(ClientPort(HOST, number)) as port,
            served(port) as listener,
            socket.create_connection((HOST, number), 10.0),
        ):
            listener.accept()[0].close()  # first: it is this side that lingers


def test_it_is_closed_with_the_last_who_has_it(port: ClientPort, number: int) -> None:
    with served(port):
        port.close()
        socket.create_connection((HOST, number), 10.0).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, number), 10.0)
    port.close()


def test_it_can_move_to_another_host(port: ClientPort, number: int) -> None:
    port.move("0.0.0.0")
    before = port.fds
    port.move(HOST)
    with served(port) as listener:
        assert listener.getsockname() == (HOST, number)
    assert len(port.fds) == len(before) == 1


def test_where_it_cannot_move_to_is_named(port: ClientPort, number: int) -> None:
    with pytest.raises(SettingsError, match=f"worker.host: cannot bind port {number} of 203.0.113"):
        port.move("203.0.113.1")
    with socket.socket() as other:  # and it is still ours
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((HOST, number))
    with served(port), socket.create_connection((HOST, number), 10.0):
        pass


def test_who_listens_already_is_noticed(number: int) -> None:
    with closing(ClientPort(HOST, number)) as port:
        (each,) = borrowed(map(os.dup, port.fds))
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with each, socket.create_server((HOST, number)), pytest.raises(OSError, match="in use"):
            listen(each, 100)


@pytest.mark.parametrize(
    ("error", "place"),
    [(PermissionError(errno.EACCES, "no"), "worker.port"),
     (OSError(errno.EADDRINUSE, "no"), "worker.port"),
     (OSError(errno.EADDRNOTAVAIL, "no"), "worker.host")],
)  # fmt: skip
def test_what_to_do_is_said_at_the_right_place(error: OSError, place: str) -> None:
    assert unbindable(HOST, 80, error).place == place


def test_every_address_is_served(number: int) -> None:
    with closing(ClientPort("", number)) as port:
        had = borrowed(map(os.dup, port.fds))
        families = {info[0] for info in socket.getaddrinfo(None, number, type=socket.SOCK_STREAM)}
        assert {each.family for each in had} == families
        for each in had:
            listen(each, 100)
            with socket.socket(each.family) as client:
                client.connect(("::1" if each.family == socket.AF_INET6 else HOST, number))
        for each in had:
            each.close()


@pytest.mark.parametrize(
    ("host", "why"),
    [(HOST, "in use"), ("203.0.113.1", "assign"), ("::2", "assign|not supported"),
     ("..", "no host has such a name"), ("no-such-host.invalid", "(?i)name")],
)  # fmt: skip
def test_what_cannot_be_had_is_an_error_and_leaves_nothing_open(host: str, why: str) -> None:
    """In a process of its own: threads that other tests have left here open what they like."""
    ran = subprocess.run(
        [sys.executable, "-c", _CANNOT_BE_HAD, host], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert re.search(why, ran.stdout), ran.stdout
