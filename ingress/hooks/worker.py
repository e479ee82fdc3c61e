"""``Worker``: what a worker.py makes of its configuration and runs.

Nothing is served here: ``run`` hands the configuration over, keeps the calling thread, as people's
code expects of it, and returns when the worker ends. What it hands over to is the ``Host`` that
loaded the file (``process.py``); elsewhere it says that it is not run that way.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from backend_adapter.hook_messages import SessionSeen
from ingress.hooks.children import is_child
from ingress.hooks.config import WorkerConfig
from ingress.hooks.handlers import Hooked, build
from ingress.hooks.payload import Session

_log = logging.getLogger("hooks")


class Host(Protocol):
    """Who loaded the file."""

    def serve(self, worker: Worker, options: dict[str, Any]) -> Awaitable[None]:
        """Take the configuration; returns when the worker ends. Raises ConfigurationError."""


_host: list[Host] = []


def set_host(host: Host) -> None:
    """Workers that are run from now on are handed over to it."""
    _host[:] = [host]


class Backend:
    """What is left of the peer's backend for code that looks into it."""

    def __init__(self, config: WorkerConfig) -> None:
        url, port = config.model_server_url, config.model_server_port
        self.model_server_url = f"{url}:{port}"
        self.model_log_file = config.model_log_file
        self.max_sessions = config.max_sessions
        #: open sessions by their id, as the adapter last told; to look at
        self.sessions: dict[str, Session] = {}

    def see(self, told: Mapping[str, SessionSeen]) -> None:
        """Take which are open now. The dict stays the same one, and so does each session."""
        for gone in self.sessions.keys() - told.keys():
            del self.sessions[gone]
        for session_id, each in told.items():
            session = self.sessions.get(session_id)
            if session is None:
                payload = each.on_close_payload
                session = self.sessions[session_id] = Session(
                    session_id=session_id,
                    lifetime=each.lifetime_s,
                    auth_data=json.loads(each.body),
                    expiration=each.expiration,
                    on_close_route=each.on_close_route,
                    on_close_payload=None if payload is None else json.loads(payload),
                    created_at=each.created_at,
                    request_idx=each.request_idx,
                )
            session.expiration = each.expiration
            session.session_reqnum = each.requests


class Worker:
    """One worker.

    Args:
        config: the whole configuration.

    Raises:
        ConfigurationError: it cannot work; the text says what to write instead.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if not isinstance(config, WorkerConfig):
            raise TypeError(f"Worker takes a WorkerConfig, not {type(config).__name__}")
        self.config = config
        self.hooked: dict[str, Hooked] = build(config)
        #: paths; people append routes of their own, which mean nothing here
        self.routes: list[Any] = list(self.hooked)
        self.backend = Backend(config)

    async def run_async(self, **options: Any) -> None:
        """Hand the configuration over; returns when the worker ends."""
        if is_child():
            raise RuntimeError(
                "a child process of this file came to its Worker, which its parent runs: put what"
                " only the parent shall do under  if __name__ == '__main__':"
            )
        for route in self.routes:
            if not isinstance(route, str):
                path = getattr(route, "path", route)
                _log.warning("the route %s is answered by the file itself: it is left out", path)
        if not _host:
            raise RuntimeError("this file is run by: python -m supervisor worker.py")
        await _host[0].serve(self, options)

    def run(self, **options: Any) -> None:
        """The same, without a loop of one's own."""
        asyncio.run(self.run_async(**options))
