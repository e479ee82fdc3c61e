"""What the imports of each process cost: CPU and memory, by package.

    python -m tests.bench.imports

What a package takes is counted without what it imports itself, where that is another package.
Memory is private memory, in the order of import: the first of two that share a library pays for it.
"""

from __future__ import annotations

import importlib
import importlib._bootstrap as bootstrap  # type: ignore[import-not-found]
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: Each process, and what it imports once it runs: its room, and what it loads at the first use.
PROCESSES = {
    "supervisor": ("supervisor.start",),
    "ingress": ("ingress.process",),
    "backend_adapter": ("backend_adapter.process",),
    "reporter": ("reporter.process", "aiohttp.web", "cryptography.hazmat.primitives.serialization"),
}
OURS = ("supervisor", "ingress", "backend_adapter", "reporter")
#: Packages that are shown by name; the rest of what was installed, and of Python, is summed up.
SHOWN = 8


def _private_kb() -> int:
    _, resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[:3])
    return (resident - of_files) * os.sysconf("SC_PAGESIZE") // 1024


def _count(modules: list[str]) -> dict[str, tuple[float, float]]:
    """In this process: package → milliseconds of CPU, KiB."""
    ms, kb, inner = Counter[str](), Counter[str](), [[0.0, 0.0]]
    load = bootstrap._load_unlocked

    def counted(spec: Any) -> Any:
        began, held = time.process_time(), _private_kb()
        inner.append([0.0, 0.0])
        try:
            return load(spec)
        finally:
            took, more = (time.process_time() - began) * 1e3, float(_private_kb() - held)
            of_others = inner.pop()
            name = spec.name.split(".")[0]
            ms[name] += took - of_others[0]
            kb[name] += more - of_others[1]
            inner[-1][0] += took
            inner[-1][1] += more

    bootstrap._load_unlocked = counted
    for module in modules:
        importlib.import_module(module)
    bootstrap._load_unlocked = load
    return {name: (ms[name], kb[name]) for name in ms}


def _package(name: str) -> str:
    if name in OURS:
        return "our own"
    return "Python" if name in sys.stdlib_module_names else name


def main() -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for column in ("process", "package", "CPU, ms", "private memory, MB"):
        table.add_column(column, justify="right" if "," in column else "left")
    for process, modules in PROCESSES.items():
        printed = subprocess.check_output([sys.executable, "-m", __spec__.name, *modules])
        ms, kb = Counter[str](), Counter[str]()
        for name, (took, held) in json.loads(printed).items():
            ms[_package(name)] += took
            kb[_package(name)] += held
        named = [name for name, _ in kb.most_common(SHOWN)]
        for name in named:
            table.add_row(process, name, f"{ms[name]:.0f}", f"{kb[name] / 1e3:.1f}")
        rest = set(kb) - set(named)
        other = sum(ms[n] for n in rest), sum(kb[n] for n in rest)
        table.add_row(process, "others", f"{other[0]:.0f}", f"{other[1] / 1e3:.1f}")
        table.add_row(process, "all", f"{ms.total():.0f}", f"{kb.total() / 1e3:.1f}")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(_count(sys.argv[1:])))
    else:
        main()
