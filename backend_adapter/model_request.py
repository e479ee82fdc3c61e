"""Pure, and a leaf: one request to the model server, and who hears of its response.

How it travels is ``model_connection.py``'s matter, when and where ``model_client.py``'s. It must
not know what the request is about.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from backend_adapter.messages import FilePart
from backend_adapter.response_headers import ResponseHead


class Sink(Protocol):
    """Who gets the response. Never called before ``send`` or ``cancel`` has returned."""

    __slots__ = ()

    @abstractmethod
    def on_head(self, head: ResponseHead) -> None:
        """The response has begun."""

    @abstractmethod
    def on_body(self, data: bytes) -> None:
        """The next bytes of its body, never empty."""

    @abstractmethod
    def on_end(self) -> None:
        """It is complete."""

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """It came all at once, and its connection is free already: the three above in one."""
        self.on_head(head)
        if body:
            self.on_body(body)
        self.on_end()

    @abstractmethod
    def on_lost(self, sent: int, reason: str) -> None:
        """The connection broke before the response began.

        ``sent``: how often it was written to one that ended so; 0: the request certainly never
        reached the model server.
        """

    @abstractmethod
    def on_broken(self, kind: str, message: str) -> None:
        """It cannot be completed. ``kind``: ``model_failed`` or ``model_timeout``."""


class Request:
    """One request. ``path`` begins with a slash; ``headers`` are lines that end in CRLF, without
    ``host``, ``content-length`` and ``transfer-encoding``.

    ``redeliver`` False: it must not arrive twice, so it gets a new connection, where a failure can
    not be mistaken for that of an old one.
    """

    __slots__ = (
        "body",
        "connection",
        "head",
        "headers",
        "method",
        "path",
        "redeliver",
        "resent",
        "sent_at",
        "sink",
    )

    def __init__(
        self,
        method: str,
        path: str,
        headers: bytes,
        body: bytes | memoryview | FilePart,
        sink: Sink,
        *,
        redeliver: bool = True,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.sink = sink
        self.redeliver = redeliver
        self.head = b""  #: as it is written; made by the client
        self.connection: Any = None  #: that carries it; None: connecting, or ended
        self.resent = False  #: it was written before, and met what may belong to another's answer
        self.sent_at = 0.0  #: loop time of connecting, later of writing

    def release(self) -> None:
        """It has ended: let go of its body, and of its sink, which mostly knows the request."""
        self.body = b""
        del self.sink
