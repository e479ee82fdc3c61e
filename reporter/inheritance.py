"""What the run before this one had not told its reporter when it ended whole, killed for example.

Law: it is accounted as that run's, each batch once, before this run's accounts begin; what was open
then ends with that run. The files lie where ``supervisor/run_dir.py`` has put them. Those of any
other run than the store's last are left out: nobody could say what of them has been told already.

It blocks, and belongs to the start, when there is no request yet.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from reporter import daybook
from reporter.load import GAP_PATIENCE_S, Load
from reporter.messages import Events
from reporter.records import Change, State
from reporter.store import LOAD_TIMEOUT_S, Store
from supervisor import run_dir

_log = logging.getLogger("reporter")


def settle(store: Store) -> State:
    """What the store holds, once it holds what an earlier run has left as well."""
    state = store.load()
    inheritance = run_dir.inheritance(store.directory)
    files = list(_files(inheritance / state.run_id)) if state.run_id else []
    if files and store.commit(_changes(state, files)).result(LOAD_TIMEOUT_S):
        state = store.load()
        _log.info("accounts of the run before this one: %d batches", sum(len(b) for _, b in files))
    elif files:
        return state  # the disk takes nothing now; the next start may do it
    shutil.rmtree(inheritance, ignore_errors=True)
    return state


def _files(directory: Path) -> Iterable[tuple[float, list[Events]]]:
    """Each file's time of writing, and its batches."""
    for path in sorted(directory.glob(f"{run_dir.ACCOUNTS_PREFIX}*")):
        with suppress(OSError):
            batches = daybook.read(path)
            if batches and path.suffix != ".new":
                yield path.stat().st_mtime, batches


def _changes(state: State, files: list[tuple[float, list[Events]]]) -> list[Change]:
    # The clock of the events may have begun anew with the machine since; but a batch is written as
    # soon as its last event has happened.
    offset_s = min(written_at - _last_at(batches) for written_at, batches in files)
    load = Load(state.run_id)
    load.adopt(state)
    changes: list[Change] = []
    now = 0.0
    for _, batches in files:
        for _, life in groupby(batches, attrgetter("epoch")):
            for events in life:
                changes += load.apply(events, now, offset_s).changes
            # what is missing is not waited for, and a life must be whole when the next one begins
            while given_up := load.tick(now := now + GAP_PATIENCE_S, offset_s):
                changes += [change for applied in given_up for change in applied.changes]
    return changes


def _last_at(batches: list[Events]) -> float:
    times = [
        at
        for events in batches
        for at in (*(o.at for o in events.opened), *(c.ended_at for c in events.closed))
    ]
    return max(times, default=0.0)
