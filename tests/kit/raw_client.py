"""A client of a worker whose every byte a test decides."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.kit.wait import DEADLINE_S
from tests.kit.worker import Worker


@dataclass
class Answer:
    """One response, and whether the connection ended after it."""

    status: int
    headers: dict[str, str]
    body: Any
    closed: bool


class Client:
    """A raw connection to the worker."""

    def __init__(self, worker: Worker) -> None:
        address = urlsplit(worker.url)
        self.socket = socket.create_connection((address.hostname, address.port), DEADLINE_S)
        self._read = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Leave with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it, unless the worker has closed meanwhile."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self) -> Answer:
        """Read one response that is framed by its length."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        if first.split()[1] == "100":
            return self.answer()
        size = int(headers["content-length"])
        while len(self._read) < size:
            self._more()
        body, self._read = self._read[:size], self._read[size:]
        closed = headers.get("connection") == "close"
        if closed:
            assert not self._read
            assert self.socket.recv(1) == b"", "more than one answer"
        return Answer(int(first.split()[1]), headers, json.loads(body), closed)

    def _more(self) -> None:
        piece = self.socket.recv(65_536)
        assert piece, f"the connection ended after {self._read!r}"
        self._read += piece
