"""A model server that says what it got: ``python -m tests.kit.echo_model PORT LOG_FILE``.

GET /health and /up answer 200, GET /seen all that was posted so far. POST /stream answers three
events, /lines three JSON lines, /sound four bytes of audio, /broken 500; anything else answers an
object with the path, the content type and the body. A payload with ``nap`` takes a moment, one with
``hang`` until its client leaves, ``{"held": NAME}`` until GET /release/NAME. Requests that ran at
the same time are counted: ``most`` of an answer is the highest number so far.
"""

from __future__ import annotations

import http.server
import json
import select
import sys
import threading
import time
from typing import Any, ClassVar


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    running = most = 0
    seen: ClassVar[list[tuple[str, str]]] = []
    held: ClassVar[dict[str, threading.Event]] = {}

    def do_GET(self) -> None:
        """The health path; what came; or let a request go that is held."""
        if self.path == "/seen":
            self._send(200, json.dumps(self.seen).encode())
            return
        if self.path.startswith("/release/"):
            self.held.pop(self.path.removeprefix("/release/")).set()
            self._send(200, b"{}")
            return
        self._send(200 if self.path in ("/health", "/up") else 404, b"ok")

    def do_POST(self) -> None:
        """Say what came."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        kind = self.headers.get("content-type", "")
        with self.lock:
            Handler.running += 1
            with open(sys.argv[2], "a", encoding="utf-8") as log:
                log.write(f"POST {self.path}\n")
            Handler.seen.append((self.path, body.decode()))
            Handler.most = max(Handler.most, Handler.running)
            most = Handler.most
        try:
            if b'"nap"' in body:
                time.sleep(0.3)
            if b'"hang"' in body:
                select.select([self.connection], [], [], 30.0)
            if b'"held"' in body:
                released = threading.Event()
                self.held[json.loads(body)["held"]] = released
                released.wait(60)
            if self.path == "/stream":
                self._stream("text/event-stream", b"data: %d\n\n")
            elif self.path == "/lines":
                self._stream("application/x-ndjson", b'{"n": %d}\n')
            elif self.path == "/sound":
                self._send(200, b"\x00\xff\x00\xff", kind="audio/wav")
            elif self.path == "/broken":
                self._send(500, b'{"detail": "it broke"}')
            else:
                told: dict[str, Any] = {"path": self.path, "type": kind, "most": most}
                told["got"] = json.loads(body) if kind.startswith("application/json") else None
                told["raw"] = body.decode("latin-1")
                self._send(200, json.dumps(told).encode(), ("x-model", "echo"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.lock:
                Handler.running -= 1

    def _stream(self, kind: str, each: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(3):
            data = each % number
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _send(
        self, status: int, body: bytes, *headers: tuple[str, str], kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    with open(sys.argv[2], "a", encoding="utf-8") as log:
        log.write("loading\nModel is READY to serve\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
