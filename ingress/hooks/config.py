"""The configuration classes of a worker.py: names, order and defaults as people use them.

Source of every name and default: the public package vastai 1.9.1, ``vastai.serverless.server``.
An unknown keyword raises the TypeError that a dataclass raises. This module is a leaf; what a
configuration means is ``describe.py``'s matter.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from ingress.hooks.payload import ApiPayload, EndpointHandler, LogAction

#: A dict of the client's payload → the dict that the model server gets.
RequestPayloadParser = Callable[[dict[str, Any]], dict[str, Any]]
#: (client's request, model server's response) → response to the client.
ClientResponseGenerator = Callable[[Any, Any], Awaitable[Any]]
#: A payload → units of work.
WorkloadCalculator = Callable[[dict[str, Any]], float]

#: Workload of a request where nothing else says it.
DEFAULT_WORKLOAD = 100.0


class ConfigurationError(Exception):
    """A worker.py's configuration cannot work. The text says what to write instead; ``at``: where
    in the file, as far as that is known.
    """

    def __init__(self, text: str, at: str = "") -> None:
        super().__init__(text)
        self.at = at


def _place(config: object) -> None:
    """Remember the line that made it, for errors; it is no field."""
    frame = sys._getframe(3)  # behind us: __post_init__, __init__, and who called that
    vars(config)["_at"] = f"{frame.f_code.co_filename}:{frame.f_lineno}"


@dataclass
class LogActionConfig:
    """What lines of the model server's log mean: a line that CONTAINS one of these texts."""

    on_load: list[str] = field(default_factory=list)  #: it has loaded
    on_error: list[str] = field(default_factory=list)  #: it is in error
    on_info: list[str] = field(default_factory=list)  #: shown among our own lines

    @property
    def log_actions(self) -> list[tuple[LogAction, str]]:
        """The same as pairs, as older code passes them."""
        return [
            *((LogAction.ModelLoaded, text) for text in self.on_load),
            *((LogAction.ModelError, text) for text in self.on_error),
            *((LogAction.Info, text) for text in self.on_info),
        ]


@dataclass
class BenchmarkConfig:
    """How capacity is measured: payloads from ``dataset`` (one at random) or ``generator()``."""

    dataset: list[dict[str, Any]] | None = None
    generator: Callable[[], dict[str, Any]] | None = None
    runs: int = 8  #: rounds
    concurrency: int | None = 10  #: requests per round, sent together
    do_warmup: bool = True  #: one request first that does not count

    def __post_init__(self) -> None:
        """Where it was made."""
        _place(self)


@dataclass
class HandlerConfig:
    """One route. ``max_queue_time`` in seconds; None: requests wait as long as it takes."""

    route: str
    healthcheck: str | None = None
    allow_parallel_requests: bool = False
    max_queue_time: float | None = 30.0
    benchmark_config: BenchmarkConfig | None = None
    handler_class: type[EndpointHandler[Any]] | None = None
    payload_class: type[ApiPayload] | None = None
    request_parser: RequestPayloadParser | None = None
    response_generator: ClientResponseGenerator | None = None
    workload_calculator: WorkloadCalculator | None = None
    is_remote_dispatch: bool = False
    remote_function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        """Where it was made."""
        _place(self)


@dataclass
class WorkerConfig:
    """The whole worker. ``lifecycle``: an async context manager, or what makes one, that is
    entered instead of waiting for a log line."""

    model_server_url: str | None = None
    model_server_port: int | None = None
    model_log_file: str | None = None
    benchmark_data: list[dict[str, Any]] = field(default_factory=list)
    handlers: list[HandlerConfig] = field(default_factory=list)
    model_healthcheck_url: str | None = None
    benchmark_route: str | None = None
    log_action_config: LogActionConfig = field(default_factory=LogActionConfig)
    max_sessions: int | None = 10  #: 0 or None: no limit
    lifecycle: AbstractAsyncContextManager[Any] | None = None

    def __post_init__(self) -> None:
        """Where it was made."""
        _place(self)
