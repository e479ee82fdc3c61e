"""The words of the engine's HTTP API: what workers and clients post to it.

A leaf. Names, spellings and units are those of the serverless engine as its workers (vastai 1.9.1,
``vastai.serverless.server``) and clients use them. Fields that nobody needs here may be left out;
a wrong type is refused, so that a mistake of a worker shows.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Amount = Annotated[float, Meta(ge=0, le=2**53)]
Number = Annotated[int, Meta(ge=0, le=2**53)]
ShortText = Annotated[str, Meta(max_length=4096)]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /worker_status/``: one worker's state. Loads are workload, times seconds."""

    id: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    url: ShortText = ""
    mtoken: ShortText = ""
    version: ShortText = ""
    error_msg: str = ""
    loadtime: Amount = 0.0  #: not 0 once, in the first report after the model got ready
    cur_load: Amount = 0.0  #: workload of the requests that are worked on
    new_load: float = 0.0  #: received less cancelled since the last delivered report
    rej_load: Amount = 0.0
    max_perf: Amount = 0.0  #: workload per second
    cur_perf: Amount = 0.0  #: workload served since the last delivered report
    cur_capacity: float = 0.0
    max_capacity: float = 0.0
    num_requests_working: Number = 0
    num_requests_recieved: Number = 0
    additional_disk_usage: float = 0.0  #: GB of 2^30 bytes
    disk_usage: float = 0.0  #: GB of 2^30 bytes
    working_request_idxs: list[int] = []


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """One ended request within ``POST /delete_requests/``. Times are wall clock seconds."""

    request_idx: int
    success: bool
    status: ShortText
    entered_queue_at: float | None = None
    work_started_at: float | None = None
    work_completed_at: float | None = None


class FinishedRequests(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /delete_requests/``: requests that ended since the last delivered post."""

    worker_id: int
    mtoken: ShortText = ""
    requests: list[Finished]


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /route/``: a client asks where to go. ``request_idx`` 0: it asks for the first time.

    ``cost`` is kept as it was sent (100 or 100.0): the 2024 signature is made over its text.
    """

    endpoint: ShortText
    api_key: ShortText = ""
    cost: Annotated[int, Meta(ge=0, le=2**53)] | Amount = 100.0
    request_idx: Number = 0
    replay_timeout: float | None = None


class WorkersRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /get_endpoint_workers/``."""

    id: int
    api_key: ShortText = ""


Json = dict[str, Any]

REPORT = msgspec.json.Decoder(Report)
FINISHED_REQUESTS = msgspec.json.Decoder(FinishedRequests)
ROUTE_REQUEST = msgspec.json.Decoder(RouteRequest)
WORKERS_REQUEST = msgspec.json.Decoder(WorkersRequest)
