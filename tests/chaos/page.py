"""Writes docs/failures.md from the rows that the tests of this directory declare.

python -m tests.chaos.page           write it
python -m tests.chaos.page --check   exit 1 if it is not what the tests say
"""

from __future__ import annotations

import importlib
import re
import sys
from itertools import groupby
from pathlib import Path

from ingress.errors import KINDS
from supervisor.settings import Settings
from tests.chaos.table import ROWS, Row

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
#: Rows of the table of failures; those after it are of hostile input and of the whole.
FAILURES = range(1, 28)
_HEAD = """\
<!-- Written by `python -m tests.chaos.page` from the tests in tests/chaos. Do not edit. -->

# What can fail, what you see, what the worker does

Each line is proven by the test in its last column, which runs the whole worker, as real processes,
with a model server and an engine that are made for tests. Where it runs less, or imitates more, the
column says so. `python -m tests.chaos` runs them all and prints how long each took;
`python -m tests.chaos 12 22` runs the rows whose numbers you name (both after
`pip install -e '.[test]'`). Kinds of errors are explained in [errors.md](errors.md), exit codes in
[exit-codes.md](exit-codes.md), settings in [settings.md](settings.md).

What the lines call the parts of the worker: `ingress` is the port that clients reach; the
`backend_adapter` ("the adapter", "the queue process") queues requests and talks to the model
server; the `reporter` tells the engine; the `supervisor` starts, watches and restarts all of them,
and the model server. "The engine" routes clients here; without one a local engine runs.
"""
_TABLE = "\n| # | when | you see | the worker | proven by |\n|---|---|---|---|---|\n"


#: What is written as code wherever it stands: settings, and the kind after a status.
_CODE = re.compile(
    rf"(?<![`\w.])((?:{'|'.join(Settings.__struct_fields__)})\.(?!py|toml)(?:\*|[a-z][a-z_]*[a-z]))(?![`\w])"
    rf"|(?<=\d\d\d )({'|'.join(KINDS)})(?![`\w])"
)


def rows() -> list[Row]:
    """Every row of every test file here, by number; those of one row in the order of the files."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.chaos.{path.stem}")
    return sorted(ROWS, key=lambda row: (row.number, row.module))


def text(table: list[Row]) -> str:
    """The page."""
    lines = [_HEAD]
    for title, wanted in (("Failures", True), ("Hostile input, and the whole", False)):
        lines.append(f"\n## {title}\n{_TABLE}")
        part = [row for row in table if (row.number in FAILURES) is wanted]
        for number, same in groupby(part, key=lambda row: row.number):
            for place, row in enumerate(same):
                cells = ("" if place else str(number), row.failure, row.seen, row.does)
                shown = " | ".join(_cell(cell) for cell in cells)
                on = f" ({row.on})" if row.on else ""
                lines.append(f"| {shown} | `{row.test}`{on} |\n")
    return "".join(lines)


def _cell(words: str) -> str:
    """One cell: its last sentence ends with it, and settings and kinds are code."""
    pieces = words.removesuffix(".").replace("|", "\\|").split("`")
    outside = (_CODE.sub(r"`\g<0>`", piece) for piece in pieces[::2])
    inside = [*pieces[1::2], None]
    return "".join(
        text if code is None else f"{text}`{code}`"
        for text, code in zip(outside, inside, strict=True)
    )


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
