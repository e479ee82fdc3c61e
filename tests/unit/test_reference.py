"""The pages of docs/ that are made from the code say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor import reference
from supervisor.exit_codes import ExitCode
from supervisor.lifecycle import Phase
from supervisor.settings_sources import fields

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_page_is_current(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run: python -m supervisor.reference"


def test_every_setting_has_a_row_with_a_meaning() -> None:
    rows = [line for line in reference.settings_page().splitlines() if line.startswith("| `")]
    for field in fields():
        assert field.description, f"{field.path} says nothing"
        assert any(row.startswith(f"| `{field.name}` |") for row in rows), field.path


def test_tables_are_not_broken_by_their_cells() -> None:
    for text in reference.pages().values():
        for line in text.splitlines():
            if line.startswith("| ") and "`" in line:
                bars = line.replace("\\|", "").count("|")
                assert bars in (3, 4, 5, 6), line


def test_every_exit_code_and_every_phase_is_there() -> None:
    codes = reference.exit_codes_page()
    for code in ExitCode:
        assert f"| {int(code)} | `{code.name}` | {code.doc} |" in codes
    life = reference.lifecycle_page()
    for phase in Phase:
        assert f"    {phase.name}: " in life


def test_main_writes_what_the_test_reads(tmp_path: Path) -> None:
    reference.main(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(reference.pages())
