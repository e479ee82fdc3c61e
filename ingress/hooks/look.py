"""What a worker.py amounts to, without a worker: ``python -m ingress.hooks.look FILE OUT``.

For ``check``. The file is executed as it would be, because nothing else can know what it does; its
``run`` writes the settings to OUT and returns at once, and what the file has started is ended by
who started this process. Exit status 0: OUT is there; 1: the reason is on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ingress.hooks.config import ConfigurationError
from ingress.hooks.describe import describe
from ingress.hooks.load import ScriptError, execute, ready_names
from ingress.hooks.worker import set_host

if TYPE_CHECKING:
    from ingress.hooks.worker import Worker

#: Stands for the socket file that a run would have.
HOSTED_URL = "unix:///worker.py"


class Looker:
    """Takes the configuration, and that is all."""

    def __init__(self, out: str) -> None:
        self._out = out
        self.seen = False

    async def serve(self, worker: Worker, options: dict[str, Any]) -> None:
        """Write it down. Raises ConfigurationError."""
        if self.seen:
            raise ConfigurationError("this file runs a Worker already; one file runs one")
        values = describe(worker.config, worker.hooked, options, HOSTED_URL)
        Path(self._out).write_bytes(msgspec.msgpack.encode(values))  # noqa: ASYNC240 - nothing waits
        self.seen = True


def main(path: str, out: str) -> int:
    """Look at one file; returns the exit status."""
    looker = Looker(out)
    set_host(looker)
    ready_names()
    try:
        execute(path)
    except ScriptError as error:
        if not looker.seen:
            print(error, file=sys.stderr)
            return 1
    if not looker.seen:
        print(f"{path}: it ended without Worker(config).run()", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
