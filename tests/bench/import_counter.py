"""``python -m tests.bench.import_counter MODULE…``: what each package among its imports takes.

Prints lines of package, milliseconds of CPU and KiB of private memory. It imports next to nothing
itself, because what it has counts as nothing.
"""

import importlib
import importlib._bootstrap as bootstrap  # type: ignore[import-not-found]
import os
import sys
import time


def _private_kb() -> int:
    with open("/proc/self/statm", "rb", buffering=0) as file:
        _, resident, of_files, *_ = map(int, file.read(128).split())
    return (resident - of_files) * os.sysconf("SC_PAGESIZE") // 1024


def main(modules: list[str]) -> None:
    """Import them, and print what was found."""
    costs: dict[str, list[float]] = {}
    within = [[0.0, 0.0]]
    load = bootstrap._load_unlocked

    def counted(spec):  # type: ignore[no-untyped-def]
        began, held = time.process_time(), _private_kb()
        within.append([0.0, 0.0])
        try:
            return load(spec)
        finally:
            used = (time.process_time() - began) * 1e3, float(_private_kb() - held)
            of_others = within.pop()
            cost = costs.setdefault(spec.name.split(".")[0], [0.0, 0.0])
            for what in (0, 1):
                cost[what] += used[what] - of_others[what]
                within[-1][what] += used[what]

    bootstrap._load_unlocked = counted
    for module in modules:
        importlib.import_module(module)
    bootstrap._load_unlocked = load
    for name, (ms, kb) in costs.items():
        print(name, ms, kb)


if __name__ == "__main__":
    main(sys.argv[1:])
