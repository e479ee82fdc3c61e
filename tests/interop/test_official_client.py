"""The platform's own client against the whole worker, through our local engine."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.certificates import make_pair
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, post_json, running

vastai = pytest.importorskip("vastai")


@contextmanager
def root_certificate(directory: Path) -> Iterator[str]:
    """The client fetches a root certificate before its first request."""
    cert, _ = make_pair(directory, "root.example")
    content = Path(cert).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/root.cer"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def with_client(
    tmp_path: Path,
    scene: Callable[[Any, Any, Worker], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> None:
    """Run a scene with the client, its endpoint, and the worker behind it."""
    with root_certificate(tmp_path) as url, running(tmp_path, **options) as worker:
        monkeypatch.setattr(vastai.Serverless, "SSL_CERT_URL", url)

        async def main() -> None:
            async with vastai.Serverless(
                api_key="any", autoscaler_url=worker.engine, webserver_url=worker.engine
            ) as client:
                endpoint = await client.get_endpoint("local")
                await scene(client, endpoint, worker)

        asyncio.run(main())


GENERATE = {"inputs": "The harbour", "parameters": {"max_new_tokens": 8}}


def test_requests_and_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(client: Any, endpoint: Any, worker: Worker) -> None:
        told = await endpoint.request("/generate", GENERATE, cost=8)
        assert told["ok"] and told["response"]["generated_text"]
        many = [endpoint.request("/generate", GENERATE, cost=8) for _ in range(20)]
        for each in await asyncio.gather(*many):
            assert each["response"]["generated_text"]
        payload = {"prompt": "The harbour", "max_tokens": 8, "stream": True}
        told = await endpoint.request("/v1/completions", payload, cost=8, stream=True)
        events = [event async for event in told["response"]]
        assert len(events) >= 8 and all("choices" in event for event in events)
        workers = await client.get_endpoint_workers(endpoint)
        assert len(workers) == 1

    with_client(tmp_path, scene, monkeypatch)


def test_a_worker_whose_model_server_is_away_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503, or a 502 where the death came in between, and then an answer. (The engine does not
    hear of it, and routes on.)
    """

    async def scene(client: Any, endpoint: Any, worker: Worker) -> None:
        post_json(f"{worker.engine}/demo/fault", {"kind": "down", "path": "/worker_status/"})
        await asyncio.to_thread(worker.kill, "model")
        told = await endpoint.request("/generate", GENERATE, cost=8)
        assert told["ok"] and told["response"]["generated_text"]

        def refused() -> bool:
            told = {row["status"] for row in worker.record()["requests"]}
            return "Success" in told and bool(told & {"Rejected", "Error"})

        await asyncio.to_thread(wait_until, refused, what="the one that was refused first")

    routes = '[[route]]\npath = "/generate"\nmax_queue_time_s = 0\n'
    pace = ("--load-seconds", "2")
    with_client(tmp_path, scene, monkeypatch, routes=routes, model_flags=pace)


def test_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(client: Any, endpoint: Any, worker: Worker) -> None:
        session = await endpoint.session(cost=20, lifetime=30)
        assert await session.is_open()
        many = [session.request("/generate", GENERATE) for _ in range(5)]
        for each in await asyncio.gather(*many):
            assert each["ok"] and each["response"]["generated_text"]
        payload = {"prompt": "The harbour", "max_tokens": 8, "stream": True}
        told = await session.request("/v1/completions", payload, stream=True)
        assert len([event async for event in told["response"]]) >= 8
        same = await endpoint.get_session(session.session_id, session.auth_data)
        assert same.session_id == session.session_id and same.lifetime == 30
        await session.close()
        with pytest.raises(Exception, match="unknown_session"):  # as it tells that one is gone
            await same.is_open()
        with pytest.raises(ValueError, match="closed session"):
            await same.request("/generate", GENERATE)
        async with await endpoint.session(cost=20) as another:
            assert (await another.request("/generate", GENERATE))["ok"]
        assert not another.open

    with_client(tmp_path, scene, monkeypatch)


def test_a_busy_worker_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(client: Any, endpoint: Any, worker: Worker) -> None:
        many = [endpoint.request("/generate", GENERATE, cost=8) for _ in range(6)]
        for each in await asyncio.gather(*many):
            assert each["ok"], each

    routes = '[[route]]\npath = "/generate"\nconcurrency = 1\nmax_queue_time_s = 0\n'
    settings = ("benchmark.max_perf=1",)
    pace = ("--tokens-per-second", "40")
    with_client(tmp_path, scene, monkeypatch, routes=routes, settings=settings, model_flags=pace)


def test_the_way_past_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With VAST_DEBUG_WORKER_URL the client asks no engine for the way, so nothing is signed:
    auth_data has two of its six fields. The worker must be one that asks for no signature."""

    async def scene(client: Any, endpoint: Any, worker: Worker) -> None:
        monkeypatch.setenv("VAST_DEBUG_WORKER_URL", worker.url)
        told = await endpoint.request("/generate", GENERATE, cost=8)
        assert told["ok"] and told["response"]["generated_text"]
        assert told["auth_data"] == {"request_idx": 1, "url": worker.url}
        payload = {"prompt": "The harbour", "max_tokens": 8, "stream": True}
        told = await endpoint.request("/v1/completions", payload, cost=8, stream=True)
        events = [event async for event in told["response"]]
        assert len(events) >= 8 and all("choices" in event for event in events)
        assert worker.record()["routes"] == 0, "nobody asked the engine"

    with_client(tmp_path, scene, monkeypatch, settings=("auth.mode=none",))


def test_the_way_past_the_engine_is_closed_where_signatures_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(client: Any, endpoint: Any, worker: Worker) -> None:
        monkeypatch.setenv("VAST_DEBUG_WORKER_URL", worker.url)
        told = await endpoint.request("/generate", GENERATE, cost=8, retry=False)
        assert not told["ok"] and told["status"] == 422
        assert "missing parameter" in told["text"]

    with_client(tmp_path, scene, monkeypatch)
