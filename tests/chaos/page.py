"""Writes docs/failures.md from the rows that the tests of this directory declare.

python -m tests.chaos.page           write it
python -m tests.chaos.page --check   exit 1 if it is not what the tests say
"""

from __future__ import annotations

import importlib
import sys
from itertools import groupby
from pathlib import Path

from tests.chaos.table import ROWS, Row

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
#: Rows of the table of failures; those after it are of hostile input and of the whole.
FAILURES = range(1, 28)
_HEAD = """\
<!-- Written by `python -m tests.chaos.page` from the tests in tests/chaos. Do not edit. -->

# What can fail, what you see, what the worker does

Each line is proven by the test in its last column, on real processes: `python -m tests.chaos` runs
them all and prints how long each took; `python -m tests.chaos 12` runs the rows whose numbers you
name. Kinds of errors are explained in [errors.md](errors.md), exit codes in
[exit-codes.md](exit-codes.md).
"""
_TABLE = "\n| # | when | you see | the worker | proven by |\n|---|---|---|---|---|\n"


def rows() -> list[Row]:
    """Every row of every test file here, by number; those of one row in the order of the files."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.chaos.{path.stem}")
    return sorted(ROWS, key=lambda row: row.number)


def text(table: list[Row]) -> str:
    """The page."""
    lines = [_HEAD]
    for title, wanted in (("Failures", True), ("Hostile input, and the whole", False)):
        lines.append(f"\n## {title}\n{_TABLE}")
        part = [row for row in table if (row.number in FAILURES) is wanted]
        for number, same in groupby(part, key=lambda row: row.number):
            for place, row in enumerate(same):
                cells = ("" if place else str(number), row.failure, row.seen, row.does)
                shown = " | ".join(cell.replace("|", "\\|") for cell in cells)
                lines.append(f"| {shown} | `{row.test}` |\n")
    return "".join(lines)


def main(arguments: list[str]) -> int:
    """The command."""
    page = text(rows())
    if "--check" in arguments:
        same = PAGE.exists() and PAGE.read_text() == page
        if not same:
            print("docs/failures.md is not what the tests say: python -m tests.chaos.page")
        return 0 if same else 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
