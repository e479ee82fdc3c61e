"""A client on a plain socket: one kept-alive connection, whose bytes a test decides."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from urllib.parse import urlsplit


def raw_request(path: str, body: bytes) -> bytes:
    """A POST, as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Client:
    """One kept-alive connection."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), 60)
        if context is not None:
            self.socket = context.wrap_socket(self.socket)
        self.file = self.socket.makefile("rb")

    def send(self, path: str, body: bytes) -> None:
        """A whole POST."""
        self.socket.sendall(raw_request(path, body))

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body. Its body is framed by a content-length.

        Raises IndexError when the connection was closed instead.
        """
        status = int(self.file.readline().split()[1])
        headers = {}
        while (line := self.file.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.file.read(int(headers["content-length"]))


class Clients(ExitStack):
    """Connections that are closed when it is left."""

    def of(self, url: str, context: ssl.SSLContext | None = None) -> Client:
        """A new one."""
        client = Client(url, context)
        self.callback(client.socket.close)
        self.callback(client.file.close)
        return client
