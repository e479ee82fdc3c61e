"""docs/failures.md is what the tests of tests/chaos say, and every failure of the table has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos.page import FAILURES, PAGE, rows, text
from tests.chaos.table import row


def test_the_page_is_what_the_tests_say() -> None:
    assert PAGE.read_text() == text(rows()), "python -m tests.chaos.page"


def test_every_failure_has_a_test() -> None:
    assert set(FAILURES) <= {row.number for row in rows()}


def test_every_test_of_the_directory_is_in_the_table() -> None:
    told = {row.test for row in rows()}
    for path in Path(PAGE.parents[1], "tests", "chaos").glob("test_*.py"):
        tests = {
            line.removeprefix("async ").removeprefix("def ").partition("(")[0]
            for line in path.read_text().splitlines()
            if line.startswith(("def test_", "async def test_"))
        }
        assert tests <= told, f"{path.name}: not marked with @row"


def test_a_row_whose_test_runs_no_worker_says_so() -> None:
    """A worker has a directory: the test's own, or that of a fixture."""
    told = {row.test for row in rows() if "no worker" in row.on or "no processes" in row.on}
    for path in Path(PAGE.parents[1], "tests", "chaos").glob("test_*.py"):
        without = set(re.findall(r"^def (test_\w+)\((?:run: Run)?\)", path.read_text(), re.M))
        assert without <= told, f"{path.name}: say on= in @row"
        told -= without
    assert not told, "they do run one"


def test_a_test_is_named_after_its_row() -> None:
    with pytest.raises(ValueError, match="is not named after its row, 3"):

        @row(3, "it fails", seen="a fault", does="mends it")
        def test_row_04_something() -> None: ...
