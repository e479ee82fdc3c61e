"""A port that was found free stays free for whoever was told of it."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from supervisor import ports
from supervisor.ports import free_port, is_free

HOST = "127.0.0.1"


@pytest.mark.parametrize("host", [HOST, "0.0.0.0"])
def test_a_port_is_kept_for_servers_and_from_others(host: str) -> None:
    port = free_port(host)
    assert is_free(host, port)
    with socket.socket() as other, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        other.bind((HOST, port))
    for _ in range(2):  # a server that was restarted
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with socket.create_server((host, port)):
            assert not is_free(host, port)
            socket.create_connection((HOST, port)).close()


def test_a_port_that_is_to_be_avoided_is_not_given() -> None:
    avoided = {port for port in range(65536) if port // 2 % 2}
    assert free_port(HOST, avoided) not in avoided


def test_few_are_kept() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        given = {free_port(HOST) for _ in range(ports.MAX_KEPT)}
        assert len(given) == ports.MAX_KEPT
    assert len(os.listdir("/proc/self/fd")) <= before + ports.MAX_KEPT
