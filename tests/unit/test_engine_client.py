"""The engine client against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from reporter.engine_client import MAX_BODY_BYTES, EngineClient, EngineError, public_key_pem
from reporter.records import Row
from supervisor.settings import EngineSettings

TOKEN = "the-secret-token"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Talk = Callable[[EngineClient, str], Awaitable[None]]


def pem(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


RSA_PEM = pem(rsa.generate_private_key(65537, 2048))
EC_PEM = pem(ec.generate_private_key(ec.SECP256R1()))


def mask(text: str) -> str:
    return text.replace(TOKEN, "***")


def converse(handler: Handler, talk: Talk, timeout_s: float = 30.0) -> None:
    """Serve everything by ``handler``, and let ``talk`` use a client and the server's address."""

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{page:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = EngineClient(EngineSettings(token=TOKEN, timeout_s=timeout_s), 7, mask)
        try:
            await talk(client, f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_reports_and_rows_arrive_as_the_protocol_has_them() -> None:
    seen: list[tuple[str, str, Any, str]] = []
    peers = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        body = json.loads(await request.read())
        seen.append((request.method, request.path, body, request.content_type))
        return web.Response(status=201, text="fine")

    async def talk(client: EngineClient, address: str) -> None:
        await client.post_status(address + "/base/", {"id": 7, "cur_load": 1.5})
        await client.post_requests(address, [Row(1, 5, "Cancelled", 1.0, 0.0, 0.0)])

    converse(handler, talk)
    assert seen == [
        (
            "POST",
            "/base/worker_status/",
            {"id": 7, "cur_load": 1.5, "mtoken": TOKEN},
            "application/json",
        ),
        (
            "POST",
            "/delete_requests/",
            {
                "worker_id": 7,
                "mtoken": TOKEN,
                "requests": [
                    {
                        "request_idx": 5,
                        "success": True,
                        "status": "Cancelled",
                        "entered_queue_at": 1.0,
                        "work_started_at": 0.0,
                        "work_completed_at": 0.0,
                    }
                ],
            },
            "application/json",
        ),
    ]
    assert len(peers) == 1  # the connection was kept


@pytest.mark.parametrize("status", [199 + 101, 302, 400, 401, 404, 500, 503])
def test_anything_but_2xx_is_refused(status: int) -> None:
    pages: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        pages.append(request.path)
        return web.Response(status=status, text=TOKEN * 100, headers={"Location": "/elsewhere"})

    async def talk(client: EngineClient, address: str) -> None:
        with pytest.raises(EngineError) as caught:
            await client.post_status(address, {})
        assert caught.value.kind == "refused"
        assert str(caught.value).endswith(f"/worker_status/ answered HTTP {status}")
        assert TOKEN not in str(caught.value)

    converse(handler, talk)
    assert pages == ["/worker_status/"]  # no redirect is followed


def test_a_mute_engine_is_given_up() -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async def talk(client: EngineClient, address: str) -> None:
        with pytest.raises(EngineError, match=r"no answer in 0\.2 s") as caught:
            await client.post_status(address, {})
        assert caught.value.kind == "timeout"

    converse(handler, talk, timeout_s=0.2)


def test_an_accepted_post_is_accepted_whatever_its_body_does() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "1000000000"})
        await answer.prepare(request)
        await answer.write(b"x" * 10)
        assert request.transport is not None
        request.transport.close()
        return answer

    async def talk(client: EngineClient, address: str) -> None:
        await client.post_status(address, {})

    converse(handler, talk)


@pytest.mark.parametrize(
    ("body", "content_type", "good"),
    [
        (b"\x00<fog>{]", "application/json", False),
        (b"{}{", "application/json", False),
        (b'{"success": true}', "application/json", True),
        (b"", "application/json", True),
        (b"[" + b" " * MAX_BODY_BYTES, "application/json", True),
        (b"fine", "text/plain", True),
    ],
)
def test_what_claims_to_be_json_and_is_none_was_not_accepted(
    body: bytes, content_type: str, good: bool
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type)

    async def talk(client: EngineClient, address: str) -> None:
        if good:
            await client.post_status(address, {})
        else:
            with pytest.raises(EngineError, match="no JSON"):
                await client.post_status(address, {})

    converse(handler, talk)


def test_an_endless_body_is_not_read() -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * MAX_BODY_BYTES)
            sent += MAX_BODY_BYTES

    async def talk(client: EngineClient, address: str) -> None:
        await client.post_status(address, {})
        with pytest.raises(EngineError, match="no public key"):
            await client.fetch_key(address)

    converse(handler, talk)
    assert sent < 100 * 2**20


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1",
        f"http://user:{TOKEN}@127.0.0.1:1/?t={TOKEN}",
        "no address",
        "http://[",
        "ftp://127.0.0.1",
        "http://" + "x" * 300,
    ],
)
def test_an_engine_out_of_reach_is_a_typed_error_without_secrets(address: str) -> None:
    async def main() -> None:
        client = EngineClient(EngineSettings(token=TOKEN, timeout_s=10.0), 7, mask)
        try:
            with pytest.raises(EngineError) as caught:
                await client.post_status(address, {})
            assert caught.value.kind == "unreachable"
            assert TOKEN not in str(caught.value)
        finally:
            await client.close()
            await client.close()  # closing twice is harmless

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_key_is_fetched_and_checked() -> None:
    answers = {"/good/pubkey/": b"\n" + RSA_PEM + b"\n\n", "/bad/pubkey/": b"<html>sorry</html>"}

    async def handler(request: web.Request) -> web.Response:
        assert request.method == "GET"
        return web.Response(body=answers[request.path])

    async def talk(client: EngineClient, address: str) -> None:
        assert await client.fetch_key(address + "/good") == RSA_PEM.decode()
        with pytest.raises(EngineError, match="/bad/pubkey/: the answer is no public key") as bad:
            await client.fetch_key(address + "/bad")
        assert bad.value.kind == "bad_key"

    converse(handler, talk)


def test_a_key_whose_answer_breaks_off_is_an_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": str(len(RSA_PEM) + 1)})
        await answer.prepare(request)
        await answer.write(RSA_PEM)
        assert request.transport is not None
        request.transport.close()
        return answer

    async def talk(client: EngineClient, address: str) -> None:
        with pytest.raises(EngineError) as caught:
            await client.fetch_key(address)
        assert caught.value.kind == "unreachable"

    converse(handler, talk)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        RSA_PEM[:100],
        EC_PEM,
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----",
    ],
    ids=["empty", "no text", "cut", "elliptic", "nothing inside"],
)
def test_what_is_no_rsa_public_key_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        public_key_pem(raw)


def test_a_huge_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reporter.engine_client.MAX_KEY_BITS", 2047)
    with pytest.raises(ValueError, match="2048 bits"):
        public_key_pem(RSA_PEM)
