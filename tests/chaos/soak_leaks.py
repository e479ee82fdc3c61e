"""What is left over of a soak: processes, descriptors, files.

Compares what each process holds after a calm stretch with what it held before it, and looks for
what outlives the worker. It judges no request (``soak_audit.py``).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.soak_harm import Holding, names_in, strays
from tests.kit.worker import Worker

#: Files and threads that a process may hold more of after a calm stretch than before it.
SLACK = 2


@dataclass
class Leaked:
    """What is left over, each as text.

    Attributes:
        processes: processes, zombies, and threads of those that live.
        descriptors: open files, connections, and ports that are still bound.
        files: of bodies, of the run's directory, of the state.
    """

    processes: list[str] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {sort.name: len(getattr(self, sort.name)) for sort in fields(self)}

    def texts(self) -> list[str]:
        """All of it."""
        return [*self.processes, *self.descriptors, *self.files]

    def compare(
        self, before: dict[str, Holding], after: dict[str, Holding], connections: int
    ) -> None:
        """What processes hold more of than before, in silence both times.

        Args:
            connections: most that a process other than ingress may keep open to its peers.
        """
        for name, now in after.items():
            then = before[name]
            for sort, what in ((self.descriptors, "files"), (self.processes, "threads")):
                more = getattr(now, what) - getattr(then, what)
                if more > SLACK:
                    sort.append(f"{name} holds {more} more {what}: {then} then, {now} now")
            if now.connections > (0 if name.startswith("ingress") else connections):
                self.descriptors.append(f"{name} holds {now.connections} connections")

    def amid(self, worker: Worker, members: Iterable[int], directory: Path, were: set[str]) -> None:
        """Of a worker that runs and has nothing to do.

        Args:
            members: process ids of its members.
            directory: the run's.
            were: names of the files that were there before.
        """
        self.processes += strays(worker, set(members))
        names = names_in(directory) - were - {"sessions"}
        spool = worker.state_dir / "spool"
        names |= {str(path) for path in spool.rglob("*") if path.is_file()}
        self.files += [f"file {name}" for name in sorted(names)]

    def behind(self, worker: Worker, directory: Path, url: str) -> None:
        """Of a worker that has stopped: its run's directory, and where clients reached it."""
        self.processes += [f"process {pid}" for pid in worker.leftovers()]
        if directory.exists():
            self.files.append(f"directory {directory}")
        state = worker.state_dir
        left = [name for name in names_in(state) if name.endswith((".new", ".tmp"))]
        self.files += [f"file {name}" for name in left]
        if (state / "spool").exists() and names_in(state / "spool"):
            self.files.append(f"spool {names_in(state / 'spool')}")
        for port in (urlsplit(url).port, worker.model_port):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port or 0))
                except OSError as error:
                    self.descriptors.append(f"port {port}: {error.strerror}")
