"""A model server that keeps every byte that it is sent, in a thread of the test's own process.

GET is answered with 200 and forgotten; any other request is kept, and answered with ``{"ok": 1}``.
What is no request by the plainest reading (a head, Content-Length, that many bytes) stays in
``rest``.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType


class _Peer(asyncio.Protocol):
    def __init__(self, model: RecordingModel) -> None:
        self._model = model
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._model.received_bytes += len(data)
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head = self._unread[:end]
            size = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    size = int(line.partition(b":")[2])
            whole = end + 4 + size
            if len(self._unread) < whole:
                return
            body, self._unread = self._unread[end + 4 : whole], self._unread[whole:]
            if not head.startswith(b"GET "):
                self._model.requests.append((head, body))
            answer = b'{"ok": 1}'
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(answer), answer)
            )

    def connection_lost(self, error: Exception | None) -> None:
        self._model.rest += self._unread


class RecordingModel:
    """``with RecordingModel() as model``: listens on ``model.url`` meanwhile."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []  #: (head, body), in their order
        self.rest = b""  #: what connections that have ended left behind
        self.received_bytes = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listening = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Peer(self), "127.0.0.1", 0)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        self._loop.close()

    def __enter__(self) -> RecordingModel:
        self._thread.start()
        assert self._listening.wait(30.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
