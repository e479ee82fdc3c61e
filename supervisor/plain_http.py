"""One HTTP request from the command line, with deadlines; the standard library does the work.

For people's commands only: it blocks, and no request of a client ever passes here. A leaf.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

#: Seconds without a byte after which an answer counts as dead.
IDLE_S = 300.0
#: Bytes of an answer that is read whole.
MAX_BYTES = 64 * 2**20
_READ_BYTES = 65_536


class HttpError(Exception):
    """Nothing sensible came back; the text says from where and why."""


class Answer:
    """A response whose body is still to be read, once."""

    def __init__(self, url: str, connection: http.client.HTTPConnection) -> None:
        self._url = url
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.content_type = self._response.getheader("Content-Type", "")
        self.retry_after = self._response.getheader("Retry-After", "")

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises HttpError when it breaks off."""
        try:
            while piece := self._response.read1(_READ_BYTES):
                yield piece
        except http.client.IncompleteRead:
            raise HttpError(f"{self._url}: the answer broke off: the connection closed") from None
        except (OSError, http.client.HTTPException) as error:
            raise HttpError(f"{self._url}: the answer broke off: {error or type(error)}") from None

    def whole(self) -> bytes:
        """The body. Raises HttpError when it breaks off, or is longer than ``MAX_BYTES``."""
        body = bytearray()
        for piece in self.pieces():
            body += piece
            if len(body) > MAX_BYTES:
                raise HttpError(f"{self._url}: the answer is longer than {MAX_BYTES} bytes")
        return bytes(body)

    def json(self) -> Any:
        """The body as JSON. Raises HttpError."""
        try:
            return json.loads(self.whole())
        except ValueError:
            raise HttpError(f"{self._url}: the answer is not JSON") from None

    def close(self) -> None:
        """Let the connection go, whatever is left of the answer."""
        self._connection.close()


def request(
    url: str, body: Any = None, *, timeout_s: float = IDLE_S, cafile: str | None = None
) -> Answer:
    """POST ``body`` as JSON, or GET where there is none.

    Args:
        url: http or https.
        body: what JSON can hold.
        timeout_s: seconds to connect, and without a byte afterwards.
        cafile: PEM file of the certificates to trust instead of the system's.

    Raises:
        HttpError: no connection, or no HTTP.
    """
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=cafile)
            connection = http.client.HTTPSConnection(
                parts.netloc, timeout=timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if body is None:
            connection.request("GET", target)
        else:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", target, json.dumps(body).encode(), headers)
        return Answer(url, connection)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise HttpError(f"{url}: {error or type(error).__name__}") from None
