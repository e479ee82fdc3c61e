"""``python -m tests.chaos [ROW …]``: run the table of failures; print what passed, and its time."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.chaos.page import rows


class Times:
    """What pytest tells of each test: its worst outcome and all of its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.outcomes: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for each phase of each test; the cases of a table count as one."""
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        self.seconds[name] += report.duration
        self.outcomes[name].add(report.outcome)


def main(arguments: list[str]) -> int:
    """The command; the exit code is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, metavar="ROW", help="its number; none: all")
    numbers = parser.parse_args(arguments).rows
    words = " or ".join(f"test_row_{number:02d}_" for number in numbers)
    times = Times()
    code = pytest.main(
        ["-q", str(Path(__file__).parent), *(("-k", words) if words else ())], [times]
    )
    # only now: what is imported before pytest does it has no explained asserts
    for row in rows():
        if row.test in times.outcomes:
            seen = times.outcomes[row.test]
            outcome = next((o for o in ("failed", "skipped") if o in seen), "passed")
            print(f"{row.number:3d}  {outcome:8s} {times.seconds[row.test]:7.1f} s  {row.test}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
