"""A worker.py on the bench: written to a directory, run as people run it, and asked."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from supervisor.ports import free_port
from tests.kit.running_worker import RunningWorker
from tests.kit.wait import wait_until

ROOT = Path(__file__).parents[2]


class Bench(RunningWorker):
    """One running worker.py, and the model server beside it."""

    #: what ``PORT`` in its text stood for
    model_port = 0
    #: the last answer and where it came from, for the report of a failure
    last: Any = None

    def ask(
        self, route: str, payload: Any, headers: dict[str, str] | None = None, **more: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """POST a request; returns status, headers and body."""
        return self.ask_body(route, {"payload": payload, **more}, headers)

    def ask_body(
        self, route: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """The same with a body of any kind."""
        self.last = None
        url = urlsplit(self.facts()["worker_url"])
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        try:
            connection.request("POST", route, json.dumps(body), headers or {})
            answer = connection.getresponse()
            lines = {name.lower(): value for name, value in answer.headers.items()}
            told = answer.status, lines, answer.read()
            self.last = url.netloc, told
            return told
        finally:
            connection.close()

    def until_served(self, count: int) -> float:
        """Wait until that many requests are accounted; returns the workload that was served."""

        def load() -> Any:
            told = self.status()["load"]
            return told if told["requests"] >= count and told["load"] == 0 else None

        return float(wait_until(load, what="the accounts")["served"])

    def json(self, route: str, payload: Any, **more: Any) -> Any:
        """The same for an answer that must be good JSON."""
        status, _, body = self.ask(route, payload, **more)
        assert status == 200, (status, body, self.output)
        return json.loads(body)

    def said(self) -> str:
        """Everything that the worker has printed, and the file."""
        log = Path(self.state_dir) / "logs" / "hooks.log"
        return self.output + (log.read_text() if log.exists() else "")

    def __enter__(self) -> Bench:
        super().__enter__()
        return self


@contextmanager
def on_the_bench(
    directory: Path,
    text: str,
    *args: str,
    files: dict[str, str] | None = None,
    model: bool = True,
    signatures: bool = False,
    script: str = "worker.py",
    **env: str,
) -> Iterator[Bench]:
    """Run a worker.py; ``PORT`` and ``LOG`` in its text are the model server's.

    ``model``: an echo model server runs beside it, started by somebody else.
    """
    port, log = free_port("127.0.0.1"), directory / "model.log"

    def filled(content: str) -> str:
        text = re.sub(r"\bPORT\b", str(port), textwrap.dedent(content))
        return re.sub(r"\bLOG\b", lambda _: repr(str(log)), text)

    if text:
        (directory / "worker.py").write_text(filled(text))
    for name, content in (files or {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(filled(content))
    server = None
    if model:
        command = [sys.executable, "-m", "tests.kit.echo_model", str(port), str(log)]
        server = subprocess.Popen(command, cwd=ROOT)
    flags = () if signatures else ("--set", "auth.mode=none")
    try:
        with Bench(directory, *flags, *args, script, **env) as bench:
            bench.model_port = port
            yield bench
    finally:
        if server is not None:
            server.kill()
            server.wait()


def until_said(bench: Bench, text: str) -> str:
    """Wait until the worker has printed it; returns everything that it has printed."""
    wait_until(lambda: text in bench.output, 60.0, f"{text!r} in the output")
    return bench.output


def kind_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and kind of a typed error."""
    return answer[0], json.loads(answer[2])["error"]["kind"]
