"""Starts the demo model server and the demo engine as the processes that they are."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit.wait import DEADLINE_S, wait_until


class Program:
    """A started demo program; ``port`` is the one that it printed."""

    def __init__(self, module: str, log: Path, *flags: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--port", "0", *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.port = 0

    @property
    def printed(self) -> str:
        """Everything on stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    def listening(self) -> Program:
        """Wait until it listens."""
        marker = "listening on http://127.0.0.1:"
        wait_until(lambda: marker in self.printed and "\n" in self.printed.split(marker)[1])
        self.port = int(self.printed.split(marker)[1].split("\n")[0])
        return self

    def connect(self) -> http.client.HTTPConnection:
        """A new connection; close it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body. ``body``: bytes, or JSON."""
        connection = self.connect()
        try:
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body)
            connection.request(method, path, sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET that is answered with 200."""
        status, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a POST that is answered with 200."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return json.loads(answer)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, then wait; the exit code."""
        self.process.terminate()
        return self.wait()


@contextmanager
def running(module: str, log: Path, *flags: str) -> Iterator[Program]:
    """The program, started; killed at the end if it still runs."""
    program = Program(module, log, *flags)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.wait(DEADLINE_S)
