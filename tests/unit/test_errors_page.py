"""docs/errors.md says what errors.py says."""

from __future__ import annotations

from pathlib import Path

from ingress.reference import page


def test_the_page_is_current() -> None:
    written = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")
    assert written == page(), "run: python -m ingress.reference"
