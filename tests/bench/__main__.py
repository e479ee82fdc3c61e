"""The worker beside its peers and its goals, in one run.

    python -m tests.bench [--only unary,streams,…] [--rounds N] [--seconds S] [--json FILE]
                          [--plot DIRECTORY]

Needs `nginx` and `wrk` (the distribution's packages: `apt install nginx wrk`). The worker and, from
PyPI, the public PyWorker are installed into environments of their own, under ~/.cache. Everything
takes turns, and medians are compared; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench import (
    bodies,
    environments,
    footprint,
    growth,
    plot,
    restarts,
    scale,
    streams,
    unary,
)
from tests.bench.table import Row, show

SECTIONS: dict[str, Callable[[int, float], Iterator[Row]]] = {
    "unary": unary.measure,
    "streams": streams.measure,
    "bodies": bodies.measure,
    "footprint": footprint.measure,
    "growth": growth.measure,
    "scale": scale.measure,
    "restarts": restarts.measure,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run of wrk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--plot", type=Path, metavar="DIRECTORY", help="draw charts there")
    args = parser.parse_args()
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install -e '.[bench]'")
    wanted = args.only.split(",")
    if unknown := set(wanted) - SECTIONS.keys():
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    # What pip installs has its bytecode; a checkout gets it at the first start, unless told not to.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    before = os.getloadavg()[0]
    rows: list[Row] = []
    try:
        for name in wanted:
            rows.extend(SECTIONS[name](args.rounds, args.seconds))
    finally:  # whatever breaks: what was measured before is not lost
        show(rows)
        if args.json:
            machine = _machine() | {"load_average_before": before}
            document = {"machine": machine, "rows": [row.as_json() for row in rows]}
            args.json.write_text(json.dumps(document, indent=1))
    if args.plot:
        plot.draw(rows, args.plot)


def _machine() -> dict[str, Any]:
    """What the figures were taken on, and of."""

    def first_line(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError:
            return ""
        said = (done.stdout + done.stderr).splitlines()
        return said[0] if said and done.returncode in (0, 1) else ""  # wrk -v ends with 1

    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": os.cpu_count(),
        "cpu": next(iter(models), platform.machine()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": first_line("nginx", "-v"),
        "wrk": first_line("wrk", "-v"),
        "pyworker": environments.PEER,
        "commit": first_line("git", "describe", "--always", "--dirty"),
    }


if __name__ == "__main__":
    main()
