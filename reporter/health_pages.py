"""The worker's own pages: /healthz, /readyz and /metrics, for people and monitors, not clients.

Law: they show what a ``View`` says and change nothing; texts in it are masked already. They bind
loopback unless the settings say otherwise, and know nothing of where the figures come from.
aiohttp is imported at ``start``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES = 1_024
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class View(msgspec.Struct, frozen=True):
    """What the pages say. /healthz and /readyz show it as JSON."""

    live: bool  #: the worker's own processes live
    ready: bool  #: requests can be answered
    reason: str = ""  #: why not, for people; masked
    details: dict[str, float | int | str | bool] = {}  #: short facts: load, queue, last report


class HealthPagesError(Exception):
    """The admin address cannot be bound; the text says which, why and what to set."""


class HealthPages:
    """One small HTTP server.

    Args:
        host: address to bind.
        port: port to bind; 0 picks a free one, see ``port``.
        view: gives the current View.
        metrics: gives the current page for Prometheus.
    """

    def __init__(
        self, host: str, port: int, view: Callable[[], View], metrics: Callable[[], bytes]
    ) -> None:
        self._host = host
        self._port = port
        self._view = view
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The bound port; before ``start``, the wanted one."""
        return self._port

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            HealthPagesError: the address cannot be bound.
        """
        from aiohttp import web

        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_page)
        runner = web.AppRunner(
            app, handle_signals=False, access_log=None, keepalive_timeout=15.0, shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise HealthPagesError(
                f"cannot serve /healthz, /readyz and /metrics on {self._host}:{self._port}"
                f" ({error.strerror or error}); set worker.admin_host or worker.admin_port"
            ) from None
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, request: web.Request) -> web.Response:
        view = self._view()
        return _json(view, view.live)

    async def _readyz(self, request: web.Request) -> web.Response:
        view = self._view()
        return _json(view, view.live and view.ready)

    async def _metrics_page(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.Response(body=self._metrics(), headers={"Content-Type": METRICS_TYPE})


def _json(view: View, well: bool) -> web.Response:
    from aiohttp import web

    return web.Response(
        status=200 if well else 503,
        body=msgspec.json.encode(view),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
