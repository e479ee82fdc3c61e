"""A shelf of worker.py files in the style of those that people have, each with what is asked of it.

A module of tests makes one, puts its files on it, and runs every one of them on the bench.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.compat.bench import Bench, on_the_bench

HEAD = """
from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig
"""
#: What most files end in.
TAIL = """
Worker(worker_config).run()
"""
#: Where a file finds modules of this repository.
ROOT = repr(str(Path(__file__).parents[2]))
Check = Callable[[Bench], None]


@dataclass(frozen=True)
class File:
    """One file. ``model``: somebody else runs the echo model server beside it."""

    text: str
    check: Check
    model: bool = True
    beside: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


class Shelf(dict[str, File]):
    """Name → file."""

    def file(
        self,
        text: str,
        head: str = HEAD,
        tail: str = TAIL,
        model: bool = True,
        beside: Mapping[str, str] | None = None,
        **env: str,
    ) -> Callable[[Check], Check]:
        """Put one file here; what is decorated asks it."""

        def take(check: Check) -> Check:
            self[check.__name__] = File(head + text + tail, check, model, beside or {}, env)
            return check

        return take

    def run(self, name: str, directory: Path) -> None:
        """Load one, wait until it is ready, and ask it."""
        file = self[name]
        with on_the_bench(
            directory, file.text, files=dict(file.beside), model=file.model, **file.env
        ) as bench:
            bench.until_ready()
            try:
                file.check(bench)
            except AssertionError:
                print(bench.said(), "the last answer:", bench.last, sep="\n")  # pytest shows it
                raise
