"""Taking away a directory that a running worker uses."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove(directory: Path) -> None:
    """All of it in one moment: what is made there again meanwhile stays."""
    aside = directory.with_name(f"{directory.name}-removed")
    directory.rename(aside)
    shutil.rmtree(aside)
