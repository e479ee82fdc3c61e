"""The base classes that a worker.py derives from: payloads, endpoint handlers, their exception.

Source of every name, field and default: the public package vastai 1.9.1 (``…server.lib
.data_types``) and the 2024 repository's ``lib.data_types``. Both ways of telling a fault in a
payload are known: ``JsonDataException({"field": "what is wrong"})`` is answered 422 with that
object.

This module is a leaf: it runs in whatever the file does with it.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

FIELD_MISSING = "field missing"
PARAMETER_MISSING = "missing parameter"


class JsonDataException(Exception):
    """A payload is not what it should be. ``message``: an object, field → what is wrong."""

    def __init__(self, json_msg: Any) -> None:
        super().__init__(json_msg)
        self.message = json_msg


class LogAction(Enum):
    """What a line of the model server's log means."""

    ModelLoaded = 1
    ModelError = 2
    Info = 3


Payload = TypeVar("Payload", bound="ApiPayload")


@dataclass
class ApiPayload(ABC):
    """A client's payload, and what the model server gets for it."""

    @classmethod
    @abstractmethod
    def for_test(cls: type[Payload]) -> Payload:
        """A payload for the benchmark."""

    @abstractmethod
    def generate_payload_json(self) -> dict[str, Any]:
        """What is sent to the model server."""

    def generate_payload_multipart(self) -> dict[str, Any] | None:
        """Form fields that are sent as multipart/form-data; None: JSON is sent."""
        return None

    @abstractmethod
    def count_workload(self) -> float:
        """Units of work that it is."""

    @classmethod
    @abstractmethod
    def from_json_msg(cls: type[Payload], json_msg: dict[str, Any]) -> Payload:
        """Read a client's payload. Raises JsonDataException."""


@dataclass
class AuthData:
    """What the engine signed."""

    cost: str
    endpoint: str
    reqnum: int
    request_idx: int
    signature: str
    url: str

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> AuthData:
        """Read it; further keys are ignored. Raises JsonDataException naming what is missing."""
        names = list(inspect.signature(cls).parameters)
        missing = {name: PARAMETER_MISSING for name in names if name not in json_msg}
        if missing:
            raise JsonDataException(missing)
        return cls(**{name: json_msg[name] for name in names})


@dataclass
class EndpointHandler(ABC, Generic[Payload]):
    """One route, as a class."""

    has_benchmark: bool = True
    concurrency: int = 10
    benchmark_runs: int = 8
    allow_parallel_requests: bool = False
    max_queue_time: float | None = None
    remote_function: Callable[..., Any] | None = None
    do_warmup_benchmark: bool = True

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Path on the model server."""

    @property
    @abstractmethod
    def healthcheck_endpoint(self) -> str | None:
        """Health path of the model server; None: this handler knows none."""

    @classmethod
    @abstractmethod
    def payload_cls(cls) -> type[Payload]:
        """The class of its payloads."""

    def make_benchmark_payload(self) -> Payload:
        """A payload for the benchmark."""
        return self.payload_cls().for_test()

    @abstractmethod
    async def generate_client_response(self, client_request: Any, model_response: Any) -> Any:
        """The client's response, from the model server's."""

    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        """The result of the function that stands in for a model server."""
        if self.remote_function is None:
            raise RuntimeError(f"no remote_function is configured for {self.endpoint}")
        return await self.remote_function(**params)

    @classmethod
    def get_data_from_request(cls, req_data: dict[str, Any]) -> tuple[AuthData, Payload, Any]:
        """auth_data, payload and session_id of a client's body. Raises JsonDataException."""
        faults: dict[str, Any] = {}
        auth_data = payload = None
        for name in ("auth_data", "payload"):
            if name not in req_data:
                faults[name] = FIELD_MISSING
                continue
            try:
                if name == "auth_data":
                    auth_data = AuthData.from_json_msg(req_data[name])
                else:
                    payload = cls.payload_cls().from_json_msg(req_data[name])
            except JsonDataException as error:
                faults[name] = error.message
        if faults or auth_data is None or payload is None:
            raise JsonDataException(faults)
        return auth_data, payload, req_data.get("session_id")


@dataclass
class Session:
    """A session, as ``worker.backend.sessions`` shows it. Times are wall-clock seconds."""

    session_id: str
    lifetime: float
    auth_data: dict[str, Any]
    expiration: float
    on_close_route: str | None
    on_close_payload: Any
    requests: list[Any] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)
    request_idx: int = 0
    session_reqnum: int = 0
