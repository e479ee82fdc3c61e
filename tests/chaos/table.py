"""The table of failures: each test of this directory says which row it proves.

``docs/failures.md`` is written from these rows (``python -m tests.chaos.page``), so it promises
nothing that no test sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_Test = TypeVar("_Test", bound=Callable[..., Any])
#: Every row of the tests that were imported so far.
ROWS: list[Row] = []


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: its place in the table; several tests may share one.
        failure: what goes wrong, a phrase.
        seen: what a person or a client sees: words, statuses, exit codes.
        does: what the worker does about it.
        module: where the test stands.
        test: name of the test.
        on: what the test runs on, where that is less than the whole worker, or imitates more
            than the model server and the engine.
    """

    number: int
    failure: str
    seen: str
    does: str
    module: str
    test: str
    on: str = ""


def row(
    number: int, failure: str, *, seen: str, does: str, on: str = ""
) -> Callable[[_Test], _Test]:
    """Mark a test as the proof of a row.

    Raises:
        ValueError: the test's name does not begin with ``test_row_NN_``.
    """

    def mark(test: _Test) -> _Test:
        name = test.__name__
        if not name.startswith(f"test_row_{number:02d}_"):
            raise ValueError(f"{name} is not named after its row, {number}")
        ROWS.append(Row(number, failure, seen, does, test.__module__, name, on))
        return test

    return mark
