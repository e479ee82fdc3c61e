"""Where a run keeps the request bodies that are too large for memory.

One directory per run, named like its runtime directory but on a disk, where that is often none. Its
files are an ingress's own (``ingress/spool.py``); here is only the place, and that nothing stays
there when a run is over, however it ended.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from supervisor.settings import Settings


def of_run(settings: Settings, runtime_dir: str) -> str:
    """The directory of the run that has this runtime directory. It may not exist."""
    return os.path.join(_base(settings), Path(runtime_dir).name)


def remove(settings: Settings, runtime_dir: str) -> None:
    """Remove what a run has left there."""
    shutil.rmtree(of_run(settings, runtime_dir), ignore_errors=True)


def remove_own(settings: Settings) -> None:
    """Remove what any earlier run with this state directory has left in it. Nobody else may run."""
    shutil.rmtree(os.path.join(settings.worker.state_dir, "spool"), ignore_errors=True)


def _base(settings: Settings) -> str:
    return settings.limits.spool_dir or os.path.join(settings.worker.state_dir, "spool")
