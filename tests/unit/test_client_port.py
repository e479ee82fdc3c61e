"""The port that belongs to the run: nobody else can have it, and who connects meanwhile waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from supervisor.client_port import ClientPort, borrowed
from supervisor.ports import free_port

HOST = "127.0.0.1"


@pytest.fixture
def number() -> int:
    return free_port(HOST)


@pytest.fixture
def port(number: int) -> Iterator[ClientPort]:
    with closing(ClientPort("0.0.0.0", number, 1)) as made:
        yield made


def served(port: ClientPort, share: int = 0) -> socket.socket:
    """What a process that inherits the share does with it."""
    (each,) = borrowed(map(os.dup, port.fds(share)))
    each.listen()
    each.settimeout(10.0)
    return each


def answered_by(*listeners: socket.socket) -> set[int]:
    """Which of them have a client waiting."""
    found = set()
    for place, listener in enumerate(listeners):
        listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                listener.accept()[0].close()
                found.add(place)
    return found


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
            closing(ClientPort(HOST, number, 1)) as port,
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


def test_the_only_share_is_never_parted_with(port: ClientPort) -> None:
    assert not port.part_with(0)


def test_a_share_that_was_parted_with_goes_with_its_process(number: int) -> None:
    with closing(ClientPort(HOST, number, 2)) as port:
        first, second = served(port, 0), served(port, 1)
        before = port.fds(0)
        assert port.part_with(0)
        assert port.fds(0) == before
        first.close()
        clients = [socket.create_connection((HOST, number), 10.0) for _ in range(40)]
        assert answered_by(second) == {0}
        successor = served(port, 0)
        clients += [socket.create_connection((HOST, number), 10.0) for _ in range(60)]
        assert answered_by(successor, second) == {0, 1}
        for each in (*clients, successor, second):
            each.close()


def test_every_address_of_a_name_is_served(number: int) -> None:
    names = {info[4] for info in socket.getaddrinfo("localhost", number, type=socket.SOCK_STREAM)}
    with closing(ClientPort("localhost", number, 1)) as port:
        had = borrowed(map(os.dup, port.fds(0)))
        assert {each.getsockname() for each in had} <= names
        assert had
        for each in had:
            each.close()


@pytest.mark.parametrize(
    ("host", "why"), [(HOST, "in use"), ("203.0.113.1", "assign"), ("::2", "assign|not supported")]
)
def test_what_cannot_be_had_is_an_error_and_leaves_nothing_open(host: str, why: str) -> None:
    open_before = os.listdir("/proc/self/fd")
    with socket.create_server((HOST, 0)) as taken, pytest.raises(OSError, match=why):
        ClientPort(host, taken.getsockname()[1], 2)
    assert os.listdir("/proc/self/fd") == open_before
