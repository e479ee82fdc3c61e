"""The embedded default: with nothing configured, the demo model is the model, on loopback.

``python -m supervisor`` alone shows a working worker within two seconds. Nothing is bypassed: the
demo model is a process like any model server, the local engine signs with its own key, and the
figures below are settings that could stand in a worker.toml. What the person did set stays; a port
that nobody named gives way to a free one when it is taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Set
from typing import Any

import msgspec

from supervisor import settings_sources
from supervisor.plan import python_module
from supervisor.ports import free_port, is_free
from supervisor.settings import (
    BenchmarkSettings,
    RouteSettings,
    Settings,
    Workload,
)

HOST = "127.0.0.1"
MODEL = "supervisor.demo.model"
#: As fast as a person likes to read along, and a mid-sized GPU writes.
TOKENS_PER_SECOND = 120.0
LOAD_SECONDS = 0.4
_MAX_TOKENS = 256
_WORDS = {
    "/generate": "parameters.max_new_tokens",
    "/generate_stream": "parameters.max_new_tokens",
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_tokens",
}


def embedded_again(settings: Settings, named: Set[str], running: Settings) -> Settings:
    """The same for a demo that runs: what it chose by itself, and its routes, stay as they are.

    Args:
        settings: as they are written now.
        named: ``section.name`` of what a person has set.
        running: what it runs with.
    """
    change = msgspec.structs.replace

    def open_ports(section: str, *names: str) -> dict[str, Any]:
        before = getattr(running, section)
        wanted = {name: getattr(getattr(settings, section), name) for name in names}
        return {
            name: wanted[name] or getattr(before, name)
            if f"{section}.{name}" in named
            else getattr(before, name)
            for name in names
        }

    model = running.model
    return change(
        settings,
        worker=change(
            settings.worker,
            **open_ports("worker", "port", "admin_port"),
            public_url="",
            id=settings.worker.id or 1,
        ),
        engine=change(
            settings.engine, **open_ports("engine", "local_port"), token=running.engine.token
        ),
        model=change(
            settings.model,
            command=model.command,
            env={**settings.model.env, "PYTHONPATH": model.env["PYTHONPATH"]},
            url=model.url,
            name=settings.model.name or "demo",
            health=model.health,
            ready_log=model.ready_log,
        ),
        route=running.route,
        benchmark=running.benchmark,
    )


def embedded(settings: Settings, named: Set[str] = frozenset()) -> Settings:
    """The settings with the demo model and its routes filled in.

    Args:
        settings: configure neither model, route nor engine.
        named: ``section.name`` of what a person has set.
    """
    port = free_port(HOST)
    environ = settings_sources.inherited_environment(secret_variables=False)
    command = python_module(
        environ, MODEL, "--port", str(port), "--tokens-per-second", f"{TOKENS_PER_SECOND:g}",
        "--load-seconds", f"{LOAD_SECONDS:g}",
    )  # fmt: skip
    change = msgspec.structs.replace
    worker, engine = settings.worker, settings.engine

    def port_of(name: str, host: str, wanted: int) -> int:
        return wanted if name in named or is_free(host, wanted) else free_port(host)

    return change(
        settings,
        worker=change(
            worker,
            port=port_of("worker.port", worker.host, worker.port),
            public_url="",  # built from host and port: nobody outside is served
            admin_port=port_of("worker.admin_port", worker.admin_host, worker.admin_port),
            id=worker.id or 1,
        ),
        engine=change(
            engine,
            local_port=port_of("engine.local_port", HOST, engine.local_port),
            token=secrets.token_urlsafe(24),
        ),
        model=change(
            settings.model,
            command=command,
            env={**settings.model.env, "PYTHONPATH": environ["PYTHONPATH"]},
            url=f"http://{HOST}:{port}",
            name=settings.model.name or "demo",
            health="/health",
            ready_log=["Application startup complete."],
        ),
        route=[
            RouteSettings(path=path, workload=Workload(field=field, default=_MAX_TOKENS))
            for path, field in _WORDS.items()
        ],
        benchmark=BenchmarkSettings(
            route="/v1/completions",
            payload={"prompt": "The harbour at night", "max_tokens": 32},
            runs=2,
            concurrency=4,
        ),
    )
