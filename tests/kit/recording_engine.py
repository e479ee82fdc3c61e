"""An engine that only listens: it signs, takes reports as they come, and keeps them raw.

Unlike the demo engine it reads nothing into them, so that fields and types of reports can be
compared. A report counts as arrived once its sender has closed the connection, which is after it
has dealt with the answer.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from supervisor.demo.signing import Signer
from tests.kit.wait import DEADLINE_S, wait_until


@dataclass
class Told:
    """What one worker has told, oldest first."""

    statuses: list[dict[str, Any]] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every ended request of its ``/delete_requests/``."""
        return [row for post in self.posts for row in post["requests"]]

    def sum(self, name: str) -> float:
        """A figure of its reports, added up."""
        return float(sum(status[name] for status in self.statuses))


class RecordingEngine:
    """The server."""

    def __init__(self) -> None:
        self._signer = Signer.generate("url")
        self._told: dict[int, Told] = {}
        self._lock = threading.Condition()
        self._holding: int | None = None  #: the worker whose reports are not answered now
        self._held = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def of(self, worker: int) -> Told:
        """What this worker has told so far."""
        with self._lock:
            return self._told.setdefault(worker, Told())

    def auth(self, url: str, idx: int, cost: float = 1) -> dict[str, Any]:
        """Signed auth_data for the worker at ``url``; ``idx`` is its reqnum, too."""
        signature = self._signer.sign(cost=cost, endpoint="e", reqnum=idx, url=url)
        return {
            "cost": cost, "endpoint": "e", "reqnum": idx, "request_idx": idx, "url": url,
            "signature": signature,
        }  # fmt: skip

    @contextmanager
    def hold(self, worker: int, trigger: Callable[[], object]) -> Iterator[None]:
        """The status report that follows ``trigger`` has come, and is answered when this ends."""
        with self._lock:
            self._holding, before = worker, self._held
        try:
            trigger()
            wait_until(lambda: self._held > before, what="a report to hold")
            yield
        finally:
            with self._lock:
                self._holding = None
                self._lock.notify_all()

    def _take(self, path: str, body: dict[str, Any]) -> None:
        if path != "/worker_status/":
            return
        with self._lock:
            if self._holding == body["id"]:
                self._held += 1
                self._lock.wait_for(lambda: self._holding != body["id"], DEADLINE_S)

    def _arrived(self, path: str, body: dict[str, Any]) -> None:
        with self._lock:
            told = self._told.setdefault(body.get("id", body.get("worker_id", 0)), Told())
            if path == "/worker_status/":
                told.statuses.append(body)
            elif path == "/delete_requests/":
                told.posts.append(body)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(engine._signer.public_pem.encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                engine._take(self.path, body)
                self._answer(b'{"success": true}')
                self.connection.settimeout(DEADLINE_S)
                with suppress(OSError):
                    self.rfile.read()
                engine._arrived(self.path, body)

            def _answer(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        return Handler

    def __enter__(self) -> RecordingEngine:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
