"""Clients of a TLS port: old versions, no TLS at all, handshakes that never end."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from tests.chaos.table import row
from tests.kit.certificates import make_pair
from tests.kit.wait import DEADLINE_S, wait_until
from tests.kit.worker import Worker, running

HALF_OPEN = 1000
CONNECTIONS = 200
#: Connections beyond the limit that are still told so (ingress/shared.py).
OVERFLOW = 64
HANDSHAKE_S = 3.0


def settings(directory: Path, *more: str) -> tuple[str, ...]:
    cert, key = make_pair(directory, "worker")
    return ("tls.enabled=true", f"tls.cert={cert}", f"tls.key={key}", *more)


def connect(worker: Worker) -> socket.socket:
    address = urlsplit(worker.url)
    return socket.create_connection((address.hostname, address.port), DEADLINE_S)


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """Speaks this version only, whatever this machine's OpenSSL thinks of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    return context


def able(context: ssl.SSLContext, directory: Path) -> bool:
    """A server that takes everything understands this client: it is not the client that fails."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.set_ciphers("ALL:@SECLEVEL=0")
    server_context.minimum_version = ssl.TLSVersion.TLSv1
    server_context.load_cert_chain(directory / "instance.crt", directory / "instance.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context.wrap_bio(to_client, to_server),
        server_context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    return not ends


def ask(worker: Worker) -> tuple[int, bytes]:
    """A request on a connection of its own, over TLS."""

    async def scene() -> tuple[int, bytes]:
        body = {"auth_data": worker.auth(), "payload": {"inputs": "x"}}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
            session.post(worker.url + "/generate", json=body, ssl=False) as answer,
        ):
            return answer.status, await answer.read()

    return asyncio.run(scene())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@row(
    30,
    "a client of an old TLS, or of none, at the TLS port",
    seen="TLS 1.0 and 1.1: no handshake. Plain HTTP: 400 invalid_request, in plain HTTP, which says"
    " to use https://. TLS at a plain port: 400 invalid_request, which says to use http://.",
    does="speaks TLS 1.2 and newer only.",
)
def test_row_30_only_tls_1_2_and_newer(tmp_path: Path) -> None:
    with running(tmp_path, settings=settings(tmp_path)) as worker:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with (
                connect(worker) as plain,
                client_context(version).wrap_socket(plain) as secure,
            ):
                assert secure.version() == version.name.replace("_", ".")
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = client_context(version)
            assert able(context, tmp_path)
            with connect(worker) as plain, pytest.raises(OSError):  # noqa: PT011
                context.wrap_socket(plain)
        for data in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x80\x2e\x01\x00\x02", b"\x00" * 100):
            with connect(worker) as plain:
                plain.sendall(data)
                told = b""
                while piece := plain.recv(65_536):
                    told += piece
            head, _, body = told.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert b"\r\nconnection: close" in head
            error = json.loads(body)["error"]
            assert error["kind"] == "invalid_request"
            assert "https://" in error["message"]
        assert ask(worker)[0] == 200


@row(
    30,
    "a thousand TLS handshakes that never end",
    seen="they are cut after limits.header_timeout_s, or earlier where there is no room for another"
    " client; honest clients are served meanwhile.",
    does="counts a client from its first packet on in limits.connections; where those are used up,"
    " the oldest handshake makes room.",
)
def test_row_30_handshakes_that_never_end(tmp_path: Path) -> None:
    flags = settings(
        tmp_path, f"limits.connections={CONNECTIONS}", f"limits.header_timeout_s={HANDSHAKE_S}"
    )
    with running(tmp_path, settings=flags) as worker:
        pid = worker.pid("ingress-0")
        ingress = psutil.Process(pid)

        def gauge() -> int:
            return int(worker.members()["ingress-0"]["gauges"]["connections"])

        def sockets() -> int:
            """Its ends of clients' connections, as the kernel counts them."""
            port = urlsplit(worker.url).port
            return sum(
                1
                for one in ingress.net_connections("tcp")
                if one.laddr.port == port and one.status != psutil.CONN_LISTEN
            )

        assert ask(worker)[0] == 200
        before = ingress.memory_info().rss
        hello = client_hello()
        clients: list[Any] = []
        try:
            for number in range(HALF_OPEN):
                client = connect(worker)
                clients.append(client)
                # nothing, one byte, half of a hello, all of it and then silence
                client.sendall((b"", hello[:1], hello[: len(hello) // 2], hello)[number % 4])
                if number % 250 == 249:
                    assert ask(worker)[0] == 200
            assert sockets() <= CONNECTIONS + OVERFLOW
            assert ingress.memory_info().rss - before < 64 * 2**20
            assert ask(worker)[0] == 200
            wait_until(lambda: sockets() == 0, what="the last of them to be cut")
            for client in clients:
                client.setblocking(False)
                assert ended(client)
            wait_until(lambda: gauge() == 0, what="nobody to be counted")
        finally:
            for client in clients:
                client.close()
        assert ask(worker)[0] == 200
        assert worker.pid("ingress-0") == pid


def client_hello() -> bytes:
    """The first words of an honest client."""
    sent = ssl.MemoryBIO()
    end = client_context(ssl.TLSVersion.TLSv1_3).wrap_bio(ssl.MemoryBIO(), sent)
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    return sent.read()


def ended(client: socket.socket) -> bool:
    """The other side has closed; what it said before is thrown away."""
    try:
        while client.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
