"""What the run before this one had not told its reporter when it ended whole, killed for example.

Law: it is accounted as that run's, each batch once, before this run's accounts begin; what was open
then ends with that run. A file goes when its batches are accounted, in the store or, where the disk
takes nothing, in memory. The files lie where ``supervisor/run_dir.py`` has put them. A run that the
store does not know had no reporter yet that could have told anything. A store that knows no run at
all is a new one: nobody could say what had been told already, so nothing of it is told.

It blocks, and belongs to the start, when there is no request yet. Bound: one file at a time, and
``PATIENCE_S`` for the disk.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from reporter import daybook
from reporter.load import GAP_PATIENCE_S, Applied, Load
from reporter.messages import Events
from reporter.outbox import MEMORY_ROWS
from reporter.records import State
from reporter.store import Store
from supervisor import run_dir

#: Seconds that the store may take for all of it; the work goes on in memory then.
PATIENCE_S = 10.0
_log = logging.getLogger("reporter")


def settle(store: Store, run_id: str) -> State:
    """What the store holds, and what earlier runs have left as well.

    Args:
        store: not loaded yet.
        run_id: of this run; once it has begun in the store, no earlier one is accounted any more.
    """
    state = store.load()
    if store.behind or state.run_id == run_id:
        return state  # behind: it cannot be read now; the next start may know what had been told
    inheritance = run_dir.inheritance(store.directory)
    end = time.monotonic() + PATIENCE_S
    try:
        files = _files(inheritance, state.run_id)
    except OSError as error:
        _log.warning("%s cannot be read: %s", inheritance, error.strerror)
        return state
    for path in files:
        try:
            accounted = _account(store, state, path, end)
        except Exception:  # whatever it is, it would be the same at every start
            _log.exception("accounts of the run before this one, %s, cannot be read", path.name)
        else:
            if accounted is None:
                return state
            state = accounted
        with suppress(OSError):
            path.unlink()
    shutil.rmtree(inheritance, ignore_errors=True)
    return state


def _files(inheritance: Path, last_run_id: str) -> list[Path]:
    """Those of the store's last run, then those of the runs after it."""
    if not last_run_id or not inheritance.is_dir():
        return []
    runs = [path for path in inheritance.iterdir() if path.is_dir()]
    runs.sort(key=lambda path: (path.name != last_run_id, path.stat().st_mtime))
    found = [path for run in runs for path in sorted(run.glob(f"{run_dir.ACCOUNTS_PREFIX}*"))]
    return [path for path in found if path.suffix != ".new"]


def _account(store: Store, state: State, path: Path, end: float) -> State | None:
    """The state with one file's batches; None: there is no place for them now."""
    batches = daybook.read(path)
    load = Load(path.parent.name)
    applied = [load.adopt(state), *_apply(load, batches, path.stat().st_mtime)]
    rows = (*state.rows, *(row for each in applied for row in each.rows))
    try:
        future = store.commit([change for each in applied for change in each.changes])
        committed = future.result(max(0.0, end - time.monotonic()))
    except TimeoutError:
        committed = False
    _log.info("accounts of the run before this one: %d batches of %s", len(batches), path.name)
    if not state.more_rows and len(rows) <= MEMORY_ROWS:
        return load.state(rows, state.delivered_through_id)
    return store.load() if committed else None


def _apply(load: Load, batches: list[Events], written_at: float) -> Iterator[Applied]:
    # A batch is written as soon as its last event has happened, or later; where the machine has
    # started anew since, so has the clock of the events.
    offset_s = min(time.time() - time.monotonic(), written_at - _last_at(batches))
    now = 0.0
    for _, life in groupby(batches, attrgetter("epoch")):
        for events in life:
            yield load.apply(events, now, offset_s)
        # what is missing is not waited for, and a life must be whole when the next one begins
        while given_up := load.tick(now := now + GAP_PATIENCE_S, offset_s):
            yield from given_up


def _last_at(batches: list[Events]) -> float:
    times = [
        at
        for events in batches
        for at in (*(o.at for o in events.opened), *(c.ended_at for c in events.closed))
    ]
    return max(times, default=0.0)
