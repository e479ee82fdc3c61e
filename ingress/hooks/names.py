"""The names that people's files import, made to mean our classes while such a file runs.

``from vastai import Worker``, ``vastai.serverless.server.worker``, ``…server.lib.data_types``,
``vastai_sdk``. Where the real package is installed, only its server modules are replaced, and the
rest of it (its client, say) is what it is; where it is not, the packages are made up.

This module knows names only, not what the classes do.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

SERVER = "vastai.serverless.server"
OURS = ("vastai", "vastai_sdk")
HINT = (
    "ours stands in for the package vastai here and has what workers need; for its other names,"
    " its client say, install it in this environment: pip install vastai"
)
#: The older name of the same package.
OLDER = "vastai_sdk"
#: Packages that are made up where they are not installed.
_PACKAGES = ("vastai", "vastai.serverless", SERVER, f"{SERVER}.lib")


class Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the replaced modules. ``contents``: module name → names in it."""

    def __init__(self, contents: dict[str, dict[str, Any]], top: dict[str, Any]) -> None:
        self._contents = contents
        self._top = top
        self._contents[OLDER] = {}
        if importlib.util.find_spec("vastai") is None:
            self._make_up()

    def _make_up(self) -> None:
        for package in _PACKAGES:
            self._contents.setdefault(package, {})
        self._contents["vastai"] = self._top

    def take_over(self) -> None:
        """The real package's own top level names our classes, too, whatever it made of them."""
        if "vastai" in self._contents:
            return
        try:
            module = importlib.import_module("vastai")
        except Exception:  # whatever it lacks: the file shall run
            self._make_up()
        else:
            vars(module).update(self._top)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """importlib: ours, or nobody's."""
        if fullname.startswith(f"{OLDER}."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        if fullname not in self._contents or (fullname.split(".")[0] == "lib" and not _of_2024()):
            return None
        package = fullname in (*_PACKAGES, "lib")
        return importlib.machinery.ModuleSpec(fullname, self, is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        """importlib: fill it."""
        name = module.__name__
        if name.split(".")[0] == OLDER:
            sys.modules[name] = importlib.import_module(name.replace(OLDER, "vastai", 1))
            return
        vars(module).update(self._contents[name])


def _of_2024() -> bool:
    """``lib`` is not installed, or it is that of the 2024 repository: no package of the user's."""
    found = importlib.machinery.PathFinder.find_spec("lib", sys.path)
    if found is None:
        return True
    needed = ("backend.py", "data_types.py", "server.py")
    return any(
        all(os.path.exists(os.path.join(place, name)) for name in needed)
        for place in found.submodule_search_locations or ()
    )


def contents(
    worker: dict[str, Any], types: dict[str, Any], server: dict[str, Any]
) -> dict[str, Any]:
    """Module name → names in it, for ``Names``."""
    return {
        f"{SERVER}.worker": {**types, **worker},
        f"{SERVER}.lib.data_types": types,
        f"{SERVER}.lib.backend": {**types, **server},
        f"{SERVER}.lib.server": server,
    }


def install(finder: Names) -> Callable[[], None]:
    """Make the names mean ours; returns what undoes it."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _replaced(name)}
    sys.meta_path.insert(0, finder)
    finder.take_over()

    def undo() -> None:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _replaced(name)]:
            del sys.modules[name]
        sys.modules.update(before)

    return undo


def _replaced(name: str) -> bool:
    return name.split(".")[0] in OURS
