"""Makes one ``EndpointHandler`` of every route of a configuration, whichever way it was written.

A route may come as functions (``request_parser``, ``workload_calculator``, …), as a payload class,
or as a handler class; everything after this module sees handlers only. What a hook's failure means
is decided here once: a calculator that raises counts as the default workload, a parser that raises
JsonDataException or ValueError refuses the request, anything else is the worker's fault.

Source of the meanings: the public package vastai 1.9.1. Where it refuses a configuration at random
moments, ``ConfigurationError`` says so at once. This module knows neither processes nor messages.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ingress.hooks import arguments
from ingress.hooks.blame import told
from ingress.hooks.config import (
    DEFAULT_WORKLOAD,
    BenchmarkConfig,
    ConfigurationError,
    HandlerConfig,
    WorkerConfig,
)
from ingress.hooks.payload import ApiPayload, EndpointHandler, JsonDataException

#: Calls of a plain remote function that run at once where a route allows parallel requests: each
#: has a thread.
MAX_PLAIN = 64
_log = logging.getLogger("hooks")


class Hooked(msgspec.Struct, frozen=True):
    """One route and what of it is user code."""

    route: str
    handler: EndpointHandler[Any]
    benchmark: BenchmarkConfig | None
    #: the payload may differ from what the client sent
    reads: bool
    #: the workload is computed
    measures: bool
    #: the response is formed by user code, or there is no model server behind it
    hosted: bool


def build(config: WorkerConfig) -> dict[str, Hooked]:
    """Every route of a configuration.

    Raises:
        ConfigurationError: it cannot work.
    """
    arguments.check(config)
    configured = config.handlers or [
        HandlerConfig(route="/", healthcheck=config.model_healthcheck_url)
    ]
    routes: dict[str, Hooked] = {}
    for each in configured:
        if each.route in routes:
            at = getattr(each, "_at", "")
            raise ConfigurationError(f"route {each.route!r} is configured twice", at)
        routes[each.route] = _of_class(each) if each.handler_class else _of_functions(each)
    return routes


def of_handler(route: str, handler: EndpointHandler[Any]) -> Hooked:
    """A handler that somebody made: everything of it is user code.

    Raises:
        ConfigurationError: it has no endpoint yet.
    """
    if not isinstance(handler.endpoint, str):
        raise ConfigurationError(
            f"the handler of {route!r} has the endpoint {handler.endpoint!r}: it must be a path of"
            " the model server, the same for every request; give each path a route of its own"
        )
    benchmark = None
    if handler.has_benchmark:
        benchmark = BenchmarkConfig(
            runs=handler.benchmark_runs,
            concurrency=handler.concurrency,
            do_warmup=handler.do_warmup_benchmark,
        )
    return Hooked(route, handler, benchmark, reads=True, measures=True, hosted=True)


def is_plain(function: Any) -> bool:
    """It is no coroutine function: it may block, and nothing can cancel it."""
    return function is not None and not (
        inspect.iscoroutinefunction(function)
        or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - an object
    )


def workload_of(payload: ApiPayload, route: str, body: bytes = b"") -> float:
    """Units of work of a payload: a finite number, not below 0; the default where it is none.

    ``body``: what the client sent, which is not logged.
    """
    try:
        workload = float(payload.count_workload())
    except Exception as error:  # whatever user code raises
        _log.warning(
            "the workload of a request to %s could not be counted; it counts as %g\n%s",
            route, DEFAULT_WORKLOAD, told(error, body),
        )  # fmt: skip
        return DEFAULT_WORKLOAD
    if not math.isfinite(workload) or workload < 0:
        _log.warning(
            "the workload of a request to %s is %r; it counts as %g",
            route, workload, DEFAULT_WORKLOAD,
        )  # fmt: skip
        return DEFAULT_WORKLOAD
    return workload


def _of_class(config: HandlerConfig) -> Hooked:
    assert config.handler_class is not None
    try:
        handler = config.handler_class()
    except Exception as error:
        name = getattr(config.handler_class, "__name__", repr(config.handler_class))
        raise ConfigurationError(
            f"handler_class of {config.route!r}: {name}() raised {error!r}; it is made without"
            " arguments"
        ) from error
    return of_handler(config.route, handler)


def _of_functions(config: HandlerConfig) -> Hooked:
    benchmark = config.benchmark_config
    payload_class = config.payload_class or _generic_payload(config)

    class Handler(EndpointHandler[Any]):
        """The route as its functions describe it."""

        @property
        def endpoint(self) -> str:
            return config.route

        @property
        def healthcheck_endpoint(self) -> str | None:
            return config.healthcheck

        @classmethod
        def payload_cls(cls) -> type[ApiPayload]:
            return payload_class

        async def generate_client_response(self, client_request: Any, model_response: Any) -> Any:
            assert config.response_generator is not None
            return await config.response_generator(client_request, model_response)

    remote = config.remote_function
    if config.is_remote_dispatch and remote is None:
        raise ConfigurationError(
            f"route {config.route!r} has is_remote_dispatch=True and no remote_function"
        )
    handler = Handler(
        has_benchmark=benchmark is not None,
        concurrency=(benchmark.concurrency if benchmark else None) or 10,
        benchmark_runs=benchmark.runs if benchmark else 8,
        allow_parallel_requests=config.allow_parallel_requests,
        max_queue_time=config.max_queue_time,
        remote_function=remote,
        do_warmup_benchmark=benchmark.do_warmup if benchmark else True,
    )
    return Hooked(
        config.route,
        handler,
        benchmark,
        reads=config.request_parser is not None or config.payload_class is not None,
        measures=config.workload_calculator is not None or config.payload_class is not None,
        hosted=config.response_generator is not None or remote is not None,
    )


def _generic_payload(config: HandlerConfig) -> type[ApiPayload]:
    """The payload class of a route that is described by functions."""
    parse, count = config.request_parser, config.workload_calculator
    benchmark, route = config.benchmark_config, config.route

    @dataclass
    class GenericPayload(ApiPayload):
        input: dict[str, Any]

        @classmethod
        def for_test(cls) -> GenericPayload:
            return cls(copy.copy(_sample(benchmark, route)))

        @classmethod
        def from_json_msg(cls, json_msg: Any) -> GenericPayload:
            if not isinstance(json_msg, Mapping):
                raise JsonDataException({"data": "payload must be a dictionary"})
            return cls(parse(dict(json_msg)) if parse else dict(json_msg))

        def generate_payload_json(self) -> dict[str, Any]:
            return self.input

        def count_workload(self) -> float:
            return count(self.input) if count else DEFAULT_WORKLOAD

    return GenericPayload


def _sample(benchmark: BenchmarkConfig | None, route: str) -> dict[str, Any]:
    if benchmark is not None and benchmark.dataset:
        return random.choice(benchmark.dataset)
    generate: Callable[[], dict[str, Any]] | None = benchmark.generator if benchmark else None
    if generate is None:
        raise ConfigurationError(
            f"the benchmark of {route!r} has no payloads: give BenchmarkConfig a dataset or a"
            " generator"
        )
    return generate()
