"""Certificates: loading, what is said when they are bad, reloading under a running server."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingress.http import Exchange, Server
from ingress.shared import OVERFLOW_CONNECTIONS
from supervisor.settings import LimitSettings
from supervisor.tls import CertificateWatch, TlsError, make_context
from tests.kit.wait import DEADLINE_S, wait_until_async


def make_pair(name: str, password: bytes | None = None) -> tuple[bytes, bytes]:
    """A self-signed certificate for ``name`` and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


FIRST = make_pair("first.test")
SECOND = make_pair("second.test")


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "instance.crt"), str(tmp_path / "instance.key")


def put(paths: tuple[str, str], cert: bytes | None, key: bytes | None) -> None:
    """Replace both files, each by a new one (None: leave it away)."""
    for path, content in zip(paths, (cert, key), strict=True):
        if content is None:
            Path(path).unlink(missing_ok=True)
        else:
            Path(path + ".new").write_bytes(content)
            os.replace(path + ".new", path)


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        (None, FIRST[1], r"certificate file .*instance\.crt: No such file"),
        (FIRST[0], None, r"private key file .*instance\.key: No such file"),
        (b"junk", FIRST[1], r"certificate file .*instance\.crt holds no certificate in PEM"),
        (FIRST[0], b"junk", r"private key file .*instance\.key holds no private key in PEM"),
        (FIRST[0], SECOND[1], r"instance\.key does not belong to the certificate .*instance\.crt"),
        (FIRST[0][:200], FIRST[1], r"instance\.crt and .*instance\.key cannot be loaded"),
        (FIRST[0], FIRST[1][:80], r"instance\.crt and .*instance\.key cannot be loaded"),
        (FIRST[0], make_pair("locked.test", b"secret")[1], r"instance\.key cannot be loaded"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else ""
    ),  # not their bytes: keys are new in each run
)
def test_a_bad_pair_is_named(
    paths: tuple[str, str], cert: bytes | None, key: bytes | None, says: str
) -> None:
    put(paths, cert, key)
    with pytest.raises(TlsError, match=says) as caught:
        make_context(*paths)
    assert "BEGIN" not in str(caught.value)


def test_a_directory_in_place_of_a_file_is_named(paths: tuple[str, str]) -> None:
    put(paths, None, FIRST[1])
    os.mkdir(paths[0])
    with pytest.raises(TlsError, match=r"instance\.crt: Is a directory"):
        make_context(*paths)


def test_old_versions_and_compression_are_off(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)
    context = make_context(*paths)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION


class Hello:
    """Answers every request; the path /hold is answered by the test."""

    def __init__(self) -> None:
        self.held: list[Exchange] = []
        self.gone = 0

    def on_head(self, exchange: Exchange) -> None:
        return None

    def on_request(self, exchange: Exchange) -> None:
        if exchange.path == b"/hold":
            self.held.append(exchange)
        else:
            exchange.respond(200, b"", exchange.body or b"hello")

    def on_writable(self, exchange: Exchange) -> None: ...

    def on_disconnect(self, exchange: Exchange) -> None:
        self.gone += 1


def client_context(*certificates: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=b"".join(certificates).decode())
    context.check_hostname = False
    return context


async def connect(
    port: int, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.wait_for(
        asyncio.open_connection("127.0.0.1", port, ssl=context), DEADLINE_S
    )


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert head.startswith(b"HTTP/1.1 200 ")
    return await reader.readexactly(5)


def names(writer: asyncio.StreamWriter) -> Any:
    return writer.get_extra_info("ssl_object").getpeercert()["subject"][0][0][1]


def test_reload_under_a_running_server(
    paths: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    put(paths, *FIRST)
    context = make_context(*paths)
    watch = CertificateWatch(context, *paths)
    trust = client_context(FIRST[0], SECOND[0])

    async def main() -> None:
        server = Server(Hello(), LimitSettings(), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, context)
        reader, writer = await connect(port, trust)
        assert names(writer) == "first.test"
        assert not watch.check()

        # Half of a replacement, then rubbish, then nothing at all: the first pair stays.
        for cert, key in ((SECOND[0], FIRST[1]), (b"junk", SECOND[1]), (None, None)):
            put(paths, cert, key)
            caplog.clear()
            assert not watch.check()
            assert not watch.check()
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            _, other = await connect(port, trust)
            assert names(other) == "first.test"
            other.close()

        put(paths, *SECOND)
        assert watch.check()
        assert not watch.check()
        new_reader, new_writer = await connect(port, trust)
        assert names(new_writer) == "second.test"
        # The old connection was not dropped.
        assert await get(reader, writer) == b"hello"
        assert await get(new_reader, new_writer) == b"hello"
        writer.close()
        new_writer.close()
        await wait_until_async(lambda: not server.connections)
        server.close()

    with caplog.at_level(logging.INFO, "ingress"):
        uvloop.run(main())


def test_streams_refusals_and_aborts_over_tls(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)
    trust = client_context(FIRST[0])

    async def main() -> None:
        app = Hello()
        server = Server(app, LimitSettings(), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))

        body = bytes(range(256)) * 4096
        reader, writer = await connect(port, trust)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert await asyncio.wait_for(reader.readexactly(len(body)), DEADLINE_S) == body

        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_until_async(lambda: app.held)
        app.held[0].begin(200, b"")
        app.held[0].write(b"one")
        app.held[0].abort()
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n")
        writer.close()

        reader, writer = await connect(port, trust)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), DEADLINE_S)
        assert answer.startswith(b"HTTP/1.1 400 ")
        writer.close()

        reader, writer = await connect(port, trust)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_until_async(lambda: len(app.held) == 2)
        writer.transport.abort()
        await wait_until_async(lambda: app.gone == 1)
        await wait_until_async(lambda: not server.connections)
        server.close()

    uvloop.run(main())


@pytest.mark.parametrize("ends", ["reset", "close", "abort"])
def test_the_end_of_a_tls_client_may_be_met_at_any_moment(
    ends: str, paths: tuple[str, str]
) -> None:
    """Its transport is gone a turn of the loop before it is said."""
    put(paths, *FIRST)

    async def main() -> None:
        loop, app = asyncio.get_running_loop(), Hello()
        server = Server(app, LimitSettings(), loop)
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        reader, writer = await connect(port, client_context(FIRST[0]))
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_until_async(lambda: app.held)
        (exchange,), seen = app.held, []
        exchange.begin(200, b"")
        exchange.write(b"x" * 1000)
        await asyncio.wait_for(reader.read(100), DEADLINE_S)

        def look() -> None:
            if not app.gone:
                loop.call_soon(look)
                seen.append(exchange.unread_bytes)
                exchange.connection.guard(True)

        loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
        look()
        if ends == "abort":
            exchange.connection._transport.abort()
        elif ends == "close":
            writer.close()
        else:
            client = writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        await wait_until_async(lambda: app.gone)
        assert {type(each) for each in seen} == {int}, seen[-1]
        server.close()

    uvloop.run(main())


def test_a_tls_client_that_reads_nothing_is_cut(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)

    async def main() -> None:
        app = Hello()
        server = Server(app, LimitSettings(), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        server._timer.cancel()  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context(FIRST[0]), limit=1024
        )
        writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_until_async(lambda: app.held)
        app.held[0].begin(200, b"")
        app.held[0].write(b"x" * 20_000_000)
        (connection,) = server._shared.connections
        settled = -1
        while settled != connection.unsent_bytes:  # the kernel's buffers fill for a while
            settled = connection.unsent_bytes
            await asyncio.sleep(0.1)
        server.sweep(1e9)
        server.sweep(1e9 + 119)
        await asyncio.sleep(0)
        assert server.connections == 1
        server.sweep(1e9 + 120)
        await wait_until_async(lambda: not server.connections)
        assert app.gone == 1
        with pytest.raises(OSError, match=r"reset|EOF"):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()
        server.close()

    uvloop.run(main())


def test_a_tls_client_that_reads_late_gets_all_of_it(
    paths: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment that TLS has for its closing words is none for the answer before them."""
    put(paths, *FIRST)
    monkeypatch.setattr("ingress.greeting.SHUTDOWN_S", 0.2)

    async def main() -> None:
        app = Hello()
        server = Server(app, LimitSettings(keepalive_s=0.2), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        for number, line in enumerate((b"Connection: close\r\n", b"")):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client_context(FIRST[0]), limit=1024
            )
            writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n%b\r\n" % line)
            await wait_until_async(lambda number=number: len(app.held) > number)
            app.held[number].respond(200, b"", b"x" * 20_000_000)
            (connection,) = server._shared.connections
            assert not server.idle
            await asyncio.sleep(2.5)  # two sweeps, and many times what is allowed for the closing
            assert connection.unsent_bytes > 1_000_000
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
            body = await asyncio.wait_for(reader.readexactly(20_000_000), DEADLINE_S)
            assert body == b"x" * 20_000_000
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            writer.close()
        await wait_until_async(lambda: not server.connections)
        assert app.gone == 0
        server.close()

    uvloop.run(main())


def test_what_is_no_tls_harms_nobody(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)
    faults: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        server = Server(Hello(), LimitSettings(), loop)
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        for data in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01", b"\x16" * 99, b""):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(data)
                await asyncio.sleep(0)
        reader, writer = await connect(port, client_context(FIRST[0]))
        assert await get(reader, writer) == b"hello"
        writer.close()
        await wait_until_async(lambda: not server.connections)
        server.close()

    uvloop.run(main())
    assert faults == []


def test_a_handshake_counts_and_is_cut_at_its_deadline(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)

    async def main() -> None:
        server = Server(Hello(), LimitSettings(header_timeout_s=5.0), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        began = time.monotonic()
        silent, slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        slow[1].write(b"\x16\x03\x01\x02")
        await wait_until_async(lambda: server.connections == 2)
        await wait_until_async(
            lambda: sum(one._task is not None for one in server._shared.handshakes) == 1
        )
        server.sweep(began + 4.9)
        assert server.connections == 2
        server.sweep(time.monotonic() + 5.0)
        assert server.connections == 0
        for reader, writer in (silent, slow):
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            writer.close()
        server.close()

    uvloop.run(main())


def test_beyond_the_limit_the_oldest_handshake_makes_room(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)
    trust = client_context(FIRST[0])

    async def main() -> None:
        server = Server(Hello(), LimitSettings(connections=2), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        first = await connect(port, trust)
        assert await get(*first) == b"hello"
        most = 2 + OVERFLOW_CONNECTIONS
        silent = []
        for _ in range(most + 10):
            silent.append(await asyncio.open_connection("127.0.0.1", port))
            assert server.connections <= most
        second = await connect(port, trust)
        assert await get(*second) == b"hello"
        assert await asyncio.wait_for(silent[0][0].read(), DEADLINE_S) == b""
        third = await connect(port, trust)  # two are served: this one is told so
        answer = await asyncio.wait_for(third[0].read(), DEADLINE_S)
        assert b'"kind":"overloaded"' in answer
        assert await get(*first) == b"hello"
        for _, writer in (first, second, third, *silent):
            writer.close()
        await wait_until_async(lambda: not server.connections)
        server.close()

    uvloop.run(main())


def test_a_handshake_that_ends_while_the_worker_drains(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)
    trust = client_context(FIRST[0])

    async def main() -> None:
        server = Server(Hello(), LimitSettings(), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await wait_until_async(lambda: server.connections == 1)
        assert await server.drain(DEADLINE_S)
        await asyncio.wait_for(writer.start_tls(trust), DEADLINE_S)
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert b'"kind":"draining"' in answer
        with pytest.raises(OSError, match="refused"):
            await connect(port, trust)
        writer.close()
        server.close()

    uvloop.run(main())


def test_a_drain_waits_a_moment_for_handshakes(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)
    trust = client_context(FIRST[0])

    async def main() -> None:
        server = Server(Hello(), LimitSettings(), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await wait_until_async(lambda: server.connections == 1)
        drained = asyncio.create_task(server.drain(DEADLINE_S))
        await asyncio.wait_for(writer.start_tls(trust), DEADLINE_S)
        assert await drained
        server.close()  # as the process ends
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert b'"kind":"draining"' in answer
        writer.close()

    uvloop.run(main())


def test_closing_cuts_handshakes(paths: tuple[str, str]) -> None:
    put(paths, *FIRST)

    async def main() -> None:
        server = Server(Hello(), LimitSettings(), asyncio.get_running_loop())
        port = await server.listen("127.0.0.1", 0, make_context(*paths))
        silent, slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        slow[1].write(b"\x16")
        await wait_until_async(lambda: server.connections == 2)
        server.close()
        assert server.connections == 0
        for reader, writer in (silent, slow):
            try:
                assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            except ConnectionResetError:
                pass  # what it said was not read
            writer.close()

    uvloop.run(main())
