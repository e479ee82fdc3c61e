"""A run's private directory: made when the run begins, removed when it is over, however it ended.

Law: accounts that the reporter has not confirmed outlive the run. What lies there under their name
is put into the state directory before the rest is removed; the next run's reporter takes it from
there (``reporter/inheritance.py``). Who removes it may be any process of the run that sees the end,
or the next start, and two of them may do it at once.

It must not know what accounts are.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from supervisor import private_dir, spool_dir
from supervisor.settings import Settings

#: Name of a run's private directory begins so.
PREFIX = "lighterman-"
#: Names of the files in it that outlive the run begin so.
ACCOUNTS_PREFIX = "accounts_"
#: A socket's address has room for 107 bytes; the name of the file needs the rest.
MAX_DIR_BYTES = 87
_log = logging.getLogger("supervisor")


def make() -> str:
    """A run's private directory, mode 0700: in TMPDIR, or in /tmp where that is too long a path."""
    path = tempfile.mkdtemp(prefix=PREFIX)
    if len(os.fsencode(path)) > MAX_DIR_BYTES:
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
    return path


def inheritance(state_dir: Path) -> Path:
    """Where what runs have left for the next one lies, by their ids. It may not exist."""
    return state_dir / "inheritance"


def remove(runtime_dir: str, settings: Settings, run_id: str, *, last: bool = True) -> None:
    """Remove what a run that is over has left, here and in its spool, but for what outlives it.

    Args:
        runtime_dir: the run's directory.
        settings: the run's.
        run_id: the run's; names no other directory.
        last: nobody will try again: what the state directory does not take is lost.
    """
    here, refused = Path(runtime_dir), ""
    for path in _accounts(here):
        try:
            _keep(path, inheritance(Path(settings.worker.state_dir)) / os.path.basename(run_id))
        except OSError as error:
            if path.exists():  # else somebody else does the same
                refused = error.strerror or "an error of the disk"
    if refused and not last:
        _leave_accounts(here)
    else:
        if refused:
            _log.warning("accounts of the last moments are lost: %s", refused)
        shutil.rmtree(here, ignore_errors=True)
    spool_dir.remove(settings, runtime_dir)


def _accounts(directory: Path) -> list[Path]:
    """Those that hold something, and are whole."""
    with suppress(OSError):
        return [
            path
            for path in directory.glob(f"{ACCOUNTS_PREFIX}*")
            if path.suffix != ".new" and path.stat().st_size
        ]
    return []


def _keep(path: Path, directory: Path) -> None:
    """Whole or not at all; its time of writing goes along."""
    private_dir.make(str(directory))
    new = directory / f"{path.name}.{os.getpid()}.new"
    try:
        shutil.copyfile(path, new)
        written_ns = path.stat().st_mtime_ns
        with suppress(OSError):
            os.utime(new, ns=(written_ns, written_ns))
        new.replace(directory / path.name)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _leave_accounts(directory: Path) -> None:
    """The rest holds the engine's token, and may not stay."""
    with suppress(OSError):
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith(ACCOUNTS_PREFIX):
                path.unlink(missing_ok=True)
