"""The local serverless engine: ``python -m supervisor.demo.engine``.

Responsible for its flags, its routes and its life. It takes the reports of workers, sends clients
to the ready worker with the least expected wait, signs the way there with its own RSA key, and
remembers what it was told, so that a test (or a person) can look it up. Its law: a token that a
worker sends is compared and forgotten, never shown.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from supervisor.demo.bodies import BadBody, read_body
from supervisor.demo.engine_api import (
    FINISHED_REQUESTS,
    REPORT,
    ROUTE_REQUEST,
    WORKERS_REQUEST,
    Json,
)
from supervisor.demo.engine_faults import ENGINE_FAULT, NO_FAULT, EngineFault, FaultSwitch
from supervisor.demo.record import Record
from supervisor.demo.routing import Registry
from supervisor.demo.serving import Server, give_up, stop_signal
from supervisor.demo.signing import BadKey, Signer

#: Bytes of one request body; a report has a few hundred.
MAX_BODY_BYTES = 8 * 2**20

#: The id of the one endpoint that there is.
ENDPOINT_ID = 1

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m supervisor.demo.engine",
        description="A local serverless engine: routes, signs, takes reports.",
        epilog="faults, for POST /demo/fault"
        ' {"kind": KIND, "for_s": S, "count": N, "path": PREFIX, "delay_s": S}:\n'
        f"  {EngineFault.__doc__}\n"
        "POST /demo/rotate_key replaces the key. GET /demo/record?since=N tells what was reported.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=3100, help="port; 0 picks a free one (%(default)s)")
    add("--scheme", choices=("url", "2024"), default="url", help="what is signed (%(default)s)")
    add("--key", type=Path, help="PEM file of the private key, made if missing; default: a new key")
    add("--mtoken", default="", help="token that reports must carry; default: any")
    add("--endpoint-name", default="local", help="name that is listed (%(default)s)")
    add("--reqnum-start", type=int, default=1, help="first reqnum (%(default)s)")
    return parser


class BadToken(Exception):
    """A report came without the token (401) or with another one (403)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """The routes, and what they share."""

    def __init__(self, args: argparse.Namespace, signer: Signer) -> None:
        self._args = args
        self._signer = signer
        self._registry = Registry()
        self._faults = FaultSwitch()
        self._statuses = Record()
        self._requests = Record()
        self._entries = 0  #: of both records together
        self._routes = 0
        self._next_reqnum: int = args.reqnum_start
        self._next_request_idx = 1
        self._started_at = time.time()

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(
            client_max_size=MAX_BODY_BYTES, middlewares=[self._misbehaving, _explaining]
        )
        app.router.add_get("/pubkey/", self._pubkey)
        app.router.add_post("/route/", self._route)
        app.router.add_post("/worker_status/", self._worker_status)
        app.router.add_post("/delete_requests/", self._delete_requests)
        app.router.add_post("/get_endpoint_workers/", self._workers)
        app.router.add_get("/api/v0/endptjobs/", self._endpoints)
        app.router.add_get("/demo/record", self._record)
        app.router.add_post("/demo/fault", self._fault)
        app.router.add_post("/demo/rotate_key", self._rotate_key)
        return app

    # ------------------------------------------------------------------------- clients

    async def _pubkey(self, request: web.Request) -> web.Response:
        return web.Response(text=self._signer.public_pem)

    async def _route(self, request: web.Request) -> web.Response:
        asked = read_body(await request.read(), ROUTE_REQUEST)
        request_idx = asked.request_idx
        if request_idx == 0:
            request_idx = self._next_request_idx
            self._next_request_idx += 1
        worker = self._registry.choose(asked.cost, time.monotonic())
        if worker is None:
            known = len(self._registry.workers)
            status = f"no ready worker: {known} known, none of them ready. Ask again."
            return _json({"request_idx": request_idx, "status": status})
        url, reqnum = worker.report.url, self._next_reqnum
        self._next_reqnum += 1
        self._routes += 1
        signature = self._signer.sign(
            cost=asked.cost, endpoint=asked.endpoint, reqnum=reqnum, url=url
        )
        return _json(
            {
                "url": url,
                "signature": signature,
                "cost": asked.cost,
                "endpoint": asked.endpoint,
                "reqnum": reqnum,
                "request_idx": request_idx,
            }
        )

    async def _workers(self, request: web.Request) -> web.Response:
        asked = read_body(await request.read(), WORKERS_REQUEST)
        if asked.id != ENDPOINT_ID:
            return _error(404, "unknown_endpoint", f"The only endpoint here has id {ENDPOINT_ID}.")
        return _json(list(self._registry.view(time.monotonic()).values()))

    async def _endpoints(self, request: web.Request) -> web.Response:
        endpoint = {
            "id": ENDPOINT_ID,
            "endpoint_name": self._args.endpoint_name,
            "api_key": "local",
            "user_id": 0,
            "created_at": self._started_at,
            "endpoint_state": "active",
        }
        return _json({"success": True, "results": [endpoint]})

    # ------------------------------------------------------------------------- workers

    async def _worker_status(self, request: web.Request) -> web.Response:
        report = read_body(await request.read(), REPORT)
        self._check(report.mtoken)
        now = time.monotonic()
        self._registry.report(report, now)
        self._registry.expire(now)
        self._remember(self._statuses, msgspec.to_builtins(report))
        return _json({"success": True})

    async def _delete_requests(self, request: web.Request) -> web.Response:
        posted = read_body(await request.read(), FINISHED_REQUESTS)
        self._check(posted.mtoken)
        for finished in posted.requests:
            entry = {"worker_id": posted.worker_id, "mtoken": posted.mtoken}
            self._remember(self._requests, entry | msgspec.to_builtins(finished))
        return _json({"success": True})

    def _check(self, mtoken: str) -> None:
        """Raises BadToken."""
        if not self._args.mtoken:
            return
        if not mtoken:
            raise BadToken(401, "This engine was started with --mtoken: send the same as mtoken.")
        if not hmac.compare_digest(mtoken.encode(), self._args.mtoken.encode()):
            raise BadToken(403, "The mtoken is not the one that this engine was started with.")

    def _remember(self, record: Record, entry: Json) -> None:
        masked = "***" if entry["mtoken"] else ""
        self._entries += 1
        record.add(self._entries, {"received_at": time.time(), **entry, "mtoken": masked})

    # ---------------------------------------------------------------------------- demo

    async def _record(self, request: web.Request) -> web.Response:
        """``since``: the ``next`` of an earlier answer, or 0 for all that is remembered."""
        since = request.query.get("since", "0")
        if not since.isascii() or not since.isdigit() or len(since) > 18:
            return _error(422, "bad_query", "since must be a whole number, 0 or more.")
        return _json(
            {
                "status": self._statuses.since(int(since)),
                "requests": self._requests.since(int(since)),
                "workers": self._registry.view(time.monotonic()),
                "routes": self._routes,
                "next": self._entries,
            }
        )

    async def _fault(self, request: web.Request) -> web.Response:
        fault = read_body(await request.read(), ENGINE_FAULT)
        self._faults.set(fault, time.monotonic())
        return _json({"ok": True, "fault": fault})

    async def _rotate_key(self, request: web.Request) -> web.Response:
        signer = await asyncio.to_thread(Signer.generate, self._args.scheme)
        if self._args.key is not None:
            signer.save(self._args.key)
        self._signer = signer
        return _json({"ok": True, "public_key": signer.public_pem})

    @web.middleware
    async def _misbehaving(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Carries out the fault that is set."""
        fault = NO_FAULT
        if not request.path.startswith("/demo/"):
            fault = self._faults.take(request.path, time.monotonic())
        match fault.kind:
            case "down":
                return _error(503, "down", "The engine is down (fault).")
            case "garbage":
                return web.Response(body=b"\x00<fog>{]", content_type="application/json")
            case "lose":
                return _hang_up(request)
            case "slow":
                await asyncio.sleep(fault.delay_s)
        response = await handler(request)
        return _hang_up(request) if fault.kind == "drop_after_accept" else response


@web.middleware
async def _explaining(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what handlers raise into JSON errors."""
    try:
        return await handler(request)
    except BadBody as error:
        return _error(422 if error.is_json else 400, "bad_body", str(error))
    except BadToken as error:
        return _error(error.status, "bad_token", str(error))
    except web.HTTPException as error:
        return _error(error.status, error.reason.lower().replace(" ", "_"), error.text or "")


def _hang_up(request: web.Request) -> web.Response:
    """Close the connection; the response is what aiohttp wants to see and cannot send."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _json(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _error(status: int, kind: str, message: str) -> web.Response:
    body = msgspec.json.encode({"error": {"kind": kind, "message": message}})
    return web.Response(status=status, body=body, content_type="application/json")


async def _run(server: Server, engine: Engine) -> None:
    stop = stop_signal()
    await server.start(engine.app())
    try:
        await stop.wait()
    finally:
        await server.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    args = flags().parse_args(argv)
    server = Server(args.host, args.port)
    try:
        signer = (
            Signer.from_file(args.key, args.scheme) if args.key else Signer.generate(args.scheme)
        )
    except BadKey as error:
        give_up(str(error))
    uvloop.run(_run(server, Engine(args, signer)))


if __name__ == "__main__":
    main()
