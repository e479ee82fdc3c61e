"""Pure: what the worker's processes hold at most, by its settings: the one place that adds it up.

``docs/memory.md`` is written from it. What each room holds to is its own; a test compares the sizes
here with theirs. It must not know how anything is held.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from supervisor.settings import Settings

MIB = 2**20
#: What is measured of each process at rest, rounded up, bytes.
AT_REST = {"supervisor": 24 * MIB, "ingress": 28 * MIB, "backend_adapter": 24 * MIB}
REPORTER_BYTES = 64 * MIB  #: at rest, and with a full outbox
CONNECTION_BYTES = 8 * 2**10  #: objects of a connection, its request and a small head
JOB_BYTES = 2 * 2**10  #: objects of a job in the queue
READ_BYTES = 320 * 2**10  #: one read of a socket, 256 KiB, and what it takes to hold it
UNSENT_BYTES = 2**14  #: ``WRITE_HIGH_BYTES`` of ``ingress/shared.py``
PIECE_BYTES = 2**16  #: of ``backend_adapter/file_body.py``
PATIENCE_BYTES = 2**16  #: unsent, above which uvloop asks for patience
KNOWN_REQUESTS_BYTES = 4 * MIB  #: heads, by ``ingress/known_requests.py``
KNOWN_HEADS_BYTES = 2 * MIB  #: ``backend_adapter/known_heads.py``, and the heads that are sent
LEAVING = 128  #: ``MAX_LEAVING`` of ``backend_adapter/run.py``
SESSIONS_BYTES = 64 * MIB  #: ``MAX_BYTES`` of ``backend_adapter/sessions.py``


class Item(msgspec.Struct, frozen=True):
    """One thing that one kind of process holds; ``bytes`` over all processes of that kind."""

    process: str
    what: str
    limit: str
    bytes: int


def items(settings: Settings) -> Iterator[Item]:
    """Everything, with its bound."""
    limits, processes = settings.limits, settings.worker.processes
    yield Item("supervisor", "at rest, with the latest log lines", "", AT_REST["supervisor"])
    rest = processes * AT_REST["ingress"]
    yield Item("ingress", "at rest", "× `worker.processes`", rest)
    yield Item(
        "ingress",
        "bodies in memory, large heads, pipelined requests, pieces that wait for the disk",
        "`limits.buffered_bytes`",
        limits.buffered_bytes,
    )
    yield Item(
        "ingress",
        "the same bodies once more, in messages that a frozen backend_adapter does not take",
        "`limits.buffered_bytes`",
        limits.buffered_bytes,
    )
    yield Item(
        "ingress",
        "one body in a file, mapped while it is checked",
        "`limits.body_bytes` × `worker.processes`",
        limits.body_bytes * processes,
    )
    yield Item(
        "ingress",
        "answers that clients leave unread",
        "`limits.unsent_bytes`",
        limits.unsent_bytes,
    )
    yield Item(
        "ingress",
        "the connections, each with its objects and 16 KiB of an answer",
        "`limits.connections` × `worker.processes` × 24 KiB",
        limits.connections * processes * (CONNECTION_BYTES + UNSENT_BYTES),
    )
    yield Item(
        "ingress",
        "heads of requests that came before",
        "4 MiB × `worker.processes`",
        processes * KNOWN_REQUESTS_BYTES,
    )
    running = settings.model.max_connections
    yield Item("backend_adapter", "at rest", "", AT_REST["backend_adapter"])
    yield Item(
        "backend_adapter",
        "bodies in memory that wait or run",
        "`queue.max_bytes`",
        settings.queue.max_bytes,
    )
    yield Item(
        "backend_adapter",
        "what the model server has not taken yet of each request, a piece of a file or a copy",
        "`model.max_connections` × 128 KiB",
        running * (PIECE_BYTES + PATIENCE_BYTES),
    )
    yield Item(
        "backend_adapter",
        "one read of each response that its client does not read",
        f"(`model.max_connections` + {LEAVING}) × 320 KiB",
        (running + LEAVING) * READ_BYTES,
    )
    yield Item(
        "backend_adapter",
        "the jobs themselves",
        "(`queue.max_jobs` + `model.max_connections`) × 2 KiB",
        (settings.queue.max_jobs + running) * JOB_BYTES,
    )
    yield Item(
        "backend_adapter",
        "sessions, open or about to be told to the model server as closed",
        "64 MiB",
        SESSIONS_BYTES,
    )
    yield Item(
        "backend_adapter", "heads of responses that came before, and of requests", "",
        KNOWN_HEADS_BYTES,
    )  # fmt: skip
    yield Item("reporter", "at rest, with the reports that are not delivered", "", REPORTER_BYTES)


def total_bytes(settings: Settings) -> int:
    """All of it together."""
    return sum(item.bytes for item in items(settings))
