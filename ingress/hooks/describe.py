"""A configuration of a worker.py as settings: what of it the other processes need to know.

Functions stay here; the settings say only that there are some (``prepare``, ``hosted``,
``sampled``). Values are plain data, section → name → value, and are checked like those of a file.

Source of the meanings: the public package vastai 1.9.1; where this differs, docs/migration.md says
so. This module is pure: it reads no file and no environment.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from types import CodeType
from typing import Any

import msgspec

from ingress.hooks.config import BenchmarkConfig, ConfigurationError, WorkerConfig
from ingress.hooks.handlers import MAX_PLAIN, Hooked, is_plain
from ingress.hooks.payload import EndpointHandler

#: Of payloads for the benchmark that stand in the settings.
MAX_PAYLOADS_BYTES = 65_536
Values = dict[str, Any]
#: Options of ``Worker.run`` that have a meaning here.
_RUN_OPTIONS = {"host": "host"}


def describe(
    config: WorkerConfig, routes: Mapping[str, Hooked], options: Mapping[str, Any], hosted_url: str
) -> Values:
    """The settings that a configuration amounts to.

    Args:
        routes: what ``handlers.build`` made of it.
        options: what ``Worker.run`` was called with.
        hosted_url: where functions that stand in for a model server are reached.

    Raises:
        ConfigurationError: it cannot work.
    """
    return {
        "worker": {ours: options[name] for name, ours in _RUN_OPTIONS.items() if name in options},
        "limits": {"sessions": _sessions(config)},
        "model": _model(config, routes, hosted_url),
        "benchmark": _benchmark(config, routes),
        "route": [_route(each) for each in routes.values()],
    }


def _sessions(config: WorkerConfig) -> int:
    most = config.max_sessions
    if most is None:
        return 0
    if not isinstance(most, int) or most < 0:
        raise ConfigurationError(f"max_sessions={most!r}: a number, or 0 or None for no limit")
    return most


def ignored(options: Mapping[str, Any]) -> list[str]:
    """Options of ``Worker.run`` that mean nothing here."""
    return sorted(set(options) - set(_RUN_OPTIONS))


def _model(config: WorkerConfig, routes: Mapping[str, Hooked], hosted_url: str) -> Values:
    logs = config.log_action_config
    health = _health(config, routes)
    on_load = _texts(logs.on_load)
    model: Values = {
        "url": hosted_url if _only_functions(routes) else _url(config),
        "error_log": _texts(logs.on_error),
        "info_log": _texts(logs.on_info),
    }
    if health:
        model["health"] = health
    if config.model_log_file:
        model["log_file"] = str(config.model_log_file)
    if config.lifecycle is not None:
        model["lifecycle"] = True
    elif config.model_log_file:
        model["ready_log"] = on_load
    elif on_load and not health:
        raise ConfigurationError(
            "log_action_config.on_load is given, but no model_log_file to look in; give one, or a"
            " model_healthcheck_url"
        )
    return model


def _texts(given: list[str] | str) -> list[str]:
    """One text where a list of them is meant is that text, not its letters."""
    return [given] if isinstance(given, str) else list(given)


def _only_functions(routes: Mapping[str, Hooked]) -> bool:
    """Nothing is sent to a model server: whatever URL is written there, this file answers."""
    return all(each.handler.remote_function is not None for each in routes.values())


def _health(config: WorkerConfig, routes: Mapping[str, Hooked]) -> str:
    health = config.model_healthcheck_url or next(
        (r.handler.healthcheck_endpoint for r in routes.values() if r.handler.healthcheck_endpoint),
        "",
    )
    if not health or "://" in health:
        return health
    health = health if health.startswith("/") else f"/{health}"
    if not _only_functions(routes):
        return health
    # it is a path of what the file runs beside its functions, not of the functions
    return f"{_url(config)}{health}" if config.model_server_url else ""


def _url(config: WorkerConfig) -> str:
    url, port = config.model_server_url, config.model_server_port
    if not url:
        raise ConfigurationError(
            'model_server_url is missing: WorkerConfig(model_server_url="http://127.0.0.1",'
            " model_server_port=18000, …)"
        )
    url = str(url).rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    return f"{url}:{port}" if port is not None else url


def benchmark_of(config: WorkerConfig, routes: Mapping[str, Hooked]) -> tuple[str, BenchmarkConfig]:
    """The route that is measured, and how; ("", …) where none is.

    Raises:
        ConfigurationError: there are several.
    """
    measured = [(r.route, r.benchmark) for r in routes.values() if r.benchmark is not None]
    if len(measured) > 1:
        names = ", ".join(route for route, _ in measured)
        raise ConfigurationError(f"a BenchmarkConfig on more than one handler ({names}): keep one")
    if measured:
        return measured[0]
    wanted = config.benchmark_route
    if wanted and wanted in routes and config.benchmark_data:
        return wanted, BenchmarkConfig(dataset=list(config.benchmark_data))
    return "", BenchmarkConfig()


def _benchmark(config: WorkerConfig, routes: Mapping[str, Hooked]) -> Values:
    route, how = benchmark_of(config, routes)
    if not route:
        return {}
    payloads = {"payloads": how.dataset} if _plain(how) else {}
    return {
        "route": route,
        **payloads,
        "sampled": True,
        "runs": how.runs,
        "concurrency": how.concurrency or 10,
        "warmup": how.do_warmup,
    }


def _plain(how: BenchmarkConfig) -> bool:
    """Its payloads are data that settings can hold: no function makes them."""
    if how.generator is not None or not how.dataset:
        return False
    try:
        encoded = msgspec.json.encode(how.dataset)
        same = msgspec.json.decode(encoded) == how.dataset
    except (TypeError, ValueError, RecursionError):
        return False
    return same and b"null" not in encoded and len(encoded) <= MAX_PAYLOADS_BYTES


def _route(hooked: Hooked) -> Values:
    handler = hooked.handler
    wait_s = handler.max_queue_time
    route: Values = {
        "path": hooked.route,
        "max_queue_time_s": math.inf if wait_s is None else float(wait_s),
        "concurrency": _at_once(handler),
        "prepare": hooked.reads or hooked.measures,
        "hosted": hooked.hosted,
    }
    if handler.endpoint != hooked.route:
        route["upstream"] = handler.endpoint
    return route


def _at_once(handler: EndpointHandler[Any]) -> int:
    if not handler.allow_parallel_requests:
        return 1
    return MAX_PLAIN if is_plain(handler.remote_function) else 0


def fingerprint(
    config: WorkerConfig, routes: Mapping[str, Hooked], environ: Mapping[str, str]
) -> str:
    """Changes when a measured capacity may have: the model, its arguments, how work is counted."""
    route, how = benchmark_of(config, routes)
    facts: list[object] = [route, how.runs, how.concurrency]
    facts += sorted(
        (name, value)
        for name, value in environ.items()
        if name == "MODEL_NAME" or name == "BACKEND" or name.endswith("_ARGS")
    )
    if route in routes:
        handler = routes[route].handler
        facts += [handler.allow_parallel_requests, handler.endpoint]
        facts += _code(handler.payload_cls().count_workload)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _code(function: Any) -> list[object]:
    """What a function does, as far as it can be seen: its code, and that of what it encloses."""
    facts: list[object] = []
    todo, seen = [function], set()
    while todo:
        each = todo.pop()
        code = each if isinstance(each, CodeType) else getattr(each, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        facts += [code.co_code, code.co_names]
        facts += [_stable(c) for c in code.co_consts if not isinstance(c, CodeType)]
        todo += [c for c in code.co_consts if isinstance(c, CodeType)]
        for cell in getattr(each, "__closure__", None) or ():
            with suppress(ValueError):  # an empty one
                todo.append(cell.cell_contents)
    return facts


def _stable(value: object) -> object:
    """The same in every process: the order in a set of texts is not."""
    if isinstance(value, frozenset):
        return sorted(repr(_stable(each)) for each in value)
    if isinstance(value, tuple):
        return [_stable(each) for each in value]
    return value
