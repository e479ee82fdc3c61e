"""Whether the arguments of a worker.py's configuration can mean anything, and where they stand.

Each fault names the class, the argument, its value and what it should be; the line is that of the
person's own call. What they mean is ``handlers.py``'s and ``describe.py``'s matter.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from ingress.hooks.config import (
    BenchmarkConfig,
    ConfigurationError,
    HandlerConfig,
    LogActionConfig,
    WorkerConfig,
)

_HOOKS = ("request_parser", "response_generator", "workload_calculator", "remote_function")
_CLASSES = ("handler_class", "payload_class")


def check(config: WorkerConfig) -> None:
    """Look at every argument, whatever the annotations promise.

    Raises:
        ConfigurationError: one of them is wrong.
    """
    given: Any = config
    port = given.model_server_port
    if port is not None and not 0 < _number(port) < 65536:
        _refuse(config, "model_server_port", port, "a port from 1 to 65535")
    if not isinstance(given.log_action_config, LogActionConfig):
        _refuse(config, "log_action_config", given.log_action_config, "LogActionConfig(…)")
    if not isinstance(given.handlers, (list, tuple)):
        _refuse(config, "handlers", given.handlers, "a list of HandlerConfig(…)")
    for handler in given.handlers:
        if not isinstance(handler, HandlerConfig):
            _refuse(config, "handlers", handler, "HandlerConfig(route=…)")
        _check_handler(handler)


def _check_handler(handler: Any) -> None:
    if not isinstance(handler.route, str) or not handler.route.startswith("/"):
        _refuse(handler, "route", handler.route, "a path that begins with '/'")
    wait_s = handler.max_queue_time
    if wait_s is not None and not _number(wait_s) >= 0:
        _refuse(handler, "max_queue_time", wait_s, "seconds, or None")
    for name in _HOOKS:
        value = getattr(handler, name)
        if value is not None and not callable(value):
            _refuse(handler, name, value, "a function")
    for name in _CLASSES:
        value = getattr(handler, name)
        if value is not None and not inspect.isclass(value):
            _refuse(handler, name, value, "a class")
    if handler.benchmark_config is not None:
        _check_benchmark(handler, handler.benchmark_config)


def _check_benchmark(handler: Any, how: Any) -> None:
    if not isinstance(how, BenchmarkConfig):
        _refuse(handler, "benchmark_config", how, "BenchmarkConfig(…)")
    if how.generator is not None and not callable(how.generator):
        _refuse(how, "generator", how.generator, "a function")
    own = handler.handler_class or handler.payload_class  # which have payloads of their own
    if not how.dataset and how.generator is None and not own:
        _refuse(how, "dataset", how.dataset, "a list of payloads; or give a generator")
    if not _number(how.runs) >= 1:
        _refuse(how, "runs", how.runs, "a number from 1 on")
    if how.concurrency is not None and not _number(how.concurrency) >= 0:
        _refuse(how, "concurrency", how.concurrency, "a number from 1 on")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _refuse(config: Any, name: str, value: Any, wanted: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    text = f"{type(config).__name__}({name}={shown}): it must be {wanted}"
    raise ConfigurationError(text, getattr(config, "_at", ""))
