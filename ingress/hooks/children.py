"""Children that a worker.py starts through ``multiprocessing`` know the names that it imports.

With the methods "spawn" and "forkserver" a child begins as a new interpreter, which imports the
file anew, as ``__mp_main__``, before it does what it is for. What it has to prepare is told by
``multiprocessing`` in one pickled dictionary; into that goes an object that makes the names mean
our classes when the child reads it. Nothing is put into the environment or onto the path.

This module knows ``multiprocessing`` only, and not what the names are (``load.py``).
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing import spawn
from typing import Any

#: Where the object stands among what a child prepares; ``multiprocessing`` overlooks it.
KEY = "ingress.hooks"
_prepared: list[bool] = []  # this process is a child that began anew


def is_child() -> bool:
    """This process was started through ``multiprocessing``."""
    return bool(_prepared) or multiprocessing.parent_process() is not None


def _prepare(ready: Callable[[], None]) -> None:
    _prepared.append(True)
    ready()


class _Names:
    """Read by a child, it becomes a call of ``ready``, a function of a module."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Callable[[], None]]]:
        return _prepare, (self._ready,)


def teach(ready: Callable[[], None]) -> Callable[[], None]:
    """Have ``ready`` called in every child before it imports the file; returns what undoes it."""
    module: Any = spawn
    original = module.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        main = sys.modules["__main__"]
        package = getattr(main, "__package__", None)
        path: str = data.get("init_main_from_path", "")
        if package and path.endswith(".py"):  # it may import its neighbours as such
            del data["init_main_from_path"]
            stem = path.rpartition("/")[2].removesuffix(".py")
            data["init_main_from_name"] = f"{package}.{stem}"
        return {KEY: _Names(ready), **data}

    module.get_preparation_data = get_preparation_data

    def undo() -> None:
        module.get_preparation_data = original

    return undo
