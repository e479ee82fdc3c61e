"""The settings that bound what clients may ask of the worker, and what it holds for them.

Part of the tree in ``settings.py``; a leaf but for the base of every section.
"""

from __future__ import annotations

from typing import Annotated

from supervisor.settings_section import Bytes, Count, Section, doc


class QueueSettings(Section, frozen=True):
    """Bounds of the queue."""

    max_jobs: Annotated[int, doc("Requests that may wait, besides those that run.", ge=1)] = 20_000
    max_bytes: Annotated[
        Bytes,
        doc("Bytes of request bodies in memory that may wait or run; those in files do not count."),
    ] = 128 * 2**20
    max_attempts: Annotated[
        int, doc("Times that one request may be sent to the model server.", ge=1, le=10)
    ] = 2


class LimitSettings(Section, frozen=True):
    """What clients may ask of the worker."""

    connections: Annotated[int, doc("Open client connections per ingress process.", ge=1)] = 8192
    request_line_bytes: Annotated[int, doc("Method, target and version.", ge=64)] = 8192
    header_bytes: Annotated[int, doc("All header lines of one request.", ge=256)] = 65_536
    header_count: Annotated[int, doc("Header lines of one request.", ge=1)] = 100
    body_bytes: Annotated[Bytes, doc("One request body.")] = 128 * 2**20
    header_timeout_s: Annotated[
        float,
        doc("Seconds for the head of a request; before it, for a TLS handshake.", gt=0),
    ] = 20.0
    body_timeout_s: Annotated[
        float,
        doc(
            "Seconds between two pieces of a request body; a body that takes longer as a whole has"
            " to keep up with 4 KiB a second.",
            gt=0,
        ),
    ] = 60.0
    keepalive_s: Annotated[float, doc("Seconds that an idle connection stays open.", gt=0)] = 75.0
    write_timeout_s: Annotated[
        float, doc("Seconds that a client may take to read anything at all.", gt=0)
    ] = 120.0
    stream_credit_bytes: Annotated[
        int,
        doc(
            "Response bytes of one stream that may be under way inside the worker; four times as"
            " many of a large answer whose client reads it as it comes.",
            ge=4096,
        ),
    ] = 262_144
    sessions: Annotated[
        Count, doc("Sessions that may be open at once; 0: as many as memory allows.")
    ] = 10
    buffered_bytes: Annotated[
        Bytes,
        doc(
            "Bytes of requests that all ingress processes together hold in memory; beyond: 503."
            " While more than half is used, a body of 16 KiB goes into a file."
        ),
    ] = 128 * 2**20
    large_bytes: Annotated[
        Bytes, doc("A request body longer than this is held in a file, not in memory.")
    ] = 2**18
    spool_bytes: Annotated[
        Bytes,
        doc(
            "Bytes of request bodies in files, over all ingress processes; beyond: 503. 0: none,"
            " every body is held in memory."
        ),
    ] = 8 * 2**30
    spool_dir: Annotated[
        str,
        doc(
            "Directory for the bodies in files; on a disk, because files of a tmpfs are memory."
            " Empty: `spool` in the state directory."
        ),
    ] = ""
    unsent_bytes: Annotated[
        Bytes,
        doc(
            "Bytes of answers that all ingress processes together hold for clients that read too"
            " slowly; beyond, the one that has not read for longest is cut off."
        ),
    ] = 128 * 2**20
