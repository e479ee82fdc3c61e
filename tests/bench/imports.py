"""What the imports of each process cost: CPU and memory, by package.

    python -m tests.bench.imports

What a package takes is counted without what it imports itself, where that is another package.
Memory is private memory, in the order of import: the first of two that share a library pays for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

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
#: Packages that are shown by name; the rest of what was installed is summed up.
SHOWN = 8


def _package(name: str) -> str:
    if name in OURS:
        return "our own"
    return "Python" if name in sys.stdlib_module_names else name


def main() -> None:
    """Print the table."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as in ``__main__.py``
    table = Table(box=None, pad_edge=False)
    for column in ("process", "package", "CPU, ms", "private memory, MB"):
        table.add_column(column, justify="right" if "," in column else "left")
    for process, modules in PROCESSES.items():
        command = [sys.executable, "-m", "tests.bench.import_counter", *modules]
        subprocess.check_output(command)  # makes the bytecode where there is none
        ms, kb = Counter[str](), Counter[str]()
        for line in subprocess.check_output(command, text=True).splitlines():
            name, took, held = line.split()
            ms[_package(name)] += float(took)
            kb[_package(name)] += float(held)
        named = [name for name, _ in kb.most_common(SHOWN)]
        for name in named:
            table.add_row(process, name, f"{ms[name]:.0f}", f"{kb[name] * 1.024e-3:.1f}")
        rest = set(kb) - set(named)
        other = sum(ms[n] for n in rest), sum(kb[n] for n in rest)
        table.add_row(process, "others", f"{other[0]:.0f}", f"{other[1] * 1.024e-3:.1f}")
        table.add_row(process, "all", f"{ms.total():.0f}", f"{kb.total() * 1.024e-3:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
