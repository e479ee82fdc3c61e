"""Workers in the style of 2024: ``workers/NAME/server.py`` with a Backend and handler classes.

``from lib.backend import Backend, LogAction``, ``lib.data_types``, ``lib.server``. What such a file
builds is turned into a ``Worker`` when it calls ``start_server``, and goes the same way from there.
Routes that its own functions answer without a model server (``web.get("/ping", …)``) are named in
the log and left out.

Source of names, arguments and defaults: the public repository's ``lib`` of 2024.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, TypeVar

from msgspec.structs import replace

from ingress.hooks.config import ConfigurationError, LogActionConfig, WorkerConfig
from ingress.hooks.handlers import Hooked, of_handler
from ingress.hooks.payload import ApiPayload, LogAction
from ingress.hooks.payload import EndpointHandler as Base
from ingress.hooks.worker import Worker

_log = logging.getLogger("hooks")
Payload = TypeVar("Payload", bound=ApiPayload)


@dataclasses.dataclass
class EndpointHandler(Base[Payload]):
    """One route; of 2024's fields only ``benchmark_runs`` has a meaning left."""

    benchmark_words: int = 100

    @property
    def healthcheck_endpoint(self) -> str | None:
        """Health URL of the model server; None: none."""
        return None

    @classmethod
    @abstractmethod
    def payload_cls(cls) -> type[Payload]:
        """The class of its payloads."""

    async def generate_client_response(self, client_request: Any, model_response: Any) -> Any:
        """The client's response; older files call it ``generate_response``."""
        older: Any = getattr(self, "generate_response", None)
        if older is None:
            raise NotImplementedError("generate_client_response")
        return await older(client_request, model_response)


@dataclasses.dataclass
class Backend:
    """What the file says of its model server. ``max_wait_time`` in seconds."""

    model_server_url: str
    model_log_file: str | None
    allow_parallel_requests: bool
    benchmark_handler: Base[Any]
    log_actions: list[tuple[LogAction, str]]
    max_wait_time: float = 10.0

    def create_handler(self, handler: Base[Any]) -> Base[Any]:
        """What a route is given; ``start_server`` knows it again."""
        return handler


async def start_server_async(backend: Backend, routes: Iterable[Any], **options: Any) -> None:
    """Run the worker; returns when it ends."""
    await worker_of(backend, routes).run_async(**options)


def start_server(backend: Backend, routes: Iterable[Any], **options: Any) -> None:
    """The same, without a loop of one's own."""
    asyncio.run(start_server_async(backend, routes, **options))


def worker_of(backend: Backend, routes: Iterable[Any]) -> Worker:
    """The worker that a Backend and aiohttp route definitions amount to.

    Raises:
        ConfigurationError: no route leads to the model server.
    """
    hooked: dict[str, Hooked] = {}
    for route in routes:
        handler, path = getattr(route, "handler", None), getattr(route, "path", "")
        if isinstance(handler, Base):
            handler.allow_parallel_requests = backend.allow_parallel_requests
            handler.max_queue_time = backend.max_wait_time
            # one of them is measured: that of the benchmark handler's own endpoint
            handler.has_benchmark = handler.endpoint == backend.benchmark_handler.endpoint
            handler.benchmark_runs = backend.benchmark_handler.benchmark_runs
            hooked[path] = of_handler(path, handler)
        else:
            _log.warning("the route %s is answered by the file itself: it is left out", path)
    if not hooked:
        raise ConfigurationError("no route has a handler of backend.create_handler(…)")
    measured = [each for each in hooked.values() if each.benchmark is not None]
    for each in measured[1:]:
        hooked[each.route] = replace(each, benchmark=None)
    told: dict[LogAction, list[str]] = {action: [] for action in LogAction}
    for action, text in backend.log_actions:
        told[action].append(text)
    worker = Worker(
        WorkerConfig(
            model_server_url=backend.model_server_url,
            model_log_file=backend.model_log_file,
            max_sessions=None,
            log_action_config=LogActionConfig(
                told[LogAction.ModelLoaded], told[LogAction.ModelError], told[LogAction.Info]
            ),
        )
    )
    worker.hooked = hooked
    return worker
