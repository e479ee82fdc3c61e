"""The accounts at rest: a file (``accounts_file.py``), and the one thread that touches it.

Law: what was acknowledged is in the file, or the file is known to be behind (``behind``). The loop
never waits for the disk: everything here but ``load`` and ``close`` returns a future at once.

- Commits that wait for the thread go together, in order, in one transaction.
- A disk that is full, gone or slow never stops the work: the future says False, the figures live in
  memory, and the file is behind. From then on nothing goes into it but a whole state: every
  ``RETRY_S``, ``wants_state`` asks for a ``rewrite``.

Bound: ``MAX_WAITING`` changes that wait for the thread; beyond, the file is behind.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from reporter.accounts_file import AccountsFile
from reporter.records import Change, Replace, Row, State

FILE_NAME = "reports.sqlite"
MAX_ROWS = 1_000_000
MAX_WAITING = 20_000
RETRY_S = 10.0
#: Seconds between two log lines about a failing disk.
LOG_EVERY_S = 60.0
LOAD_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0

_log = logging.getLogger("reporter.store")


class Store:
    """The file and its thread.

    Args:
        directory: the state directory; it need not exist yet.
        max_rows: undelivered rows that are kept at most.
    """

    def __init__(self, directory: Path, max_rows: int = MAX_ROWS) -> None:
        self.directory = directory.absolute()
        self._file = AccountsFile(self.directory / FILE_NAME, max_rows)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._lock = threading.Lock()
        self._waiting: list[tuple[Sequence[Change], Future[bool]]] = []
        self._waiting_changes = 0
        self._retry_at = 0.0
        self._logged_at = float("-inf")
        self.behind = False  #: the file does not hold what was acknowledged
        self.failures = 0  #: commits that did not reach the file

    @property
    def dropped_rows(self) -> int:
        """Undelivered rows that were too many for the file."""
        return self._file.dropped_rows

    def load(self) -> State:
        """What the file holds, the oldest rows among it. Waits, at most ``LOAD_TIMEOUT_S``.

        A file that cannot be read gives an empty state; the work goes on in memory.
        """
        try:
            return self._thread.submit(self._load).result(LOAD_TIMEOUT_S)
        except TimeoutError:
            self._fell_behind("the disk does not answer")
            return State()

    def commit(self, changes: Sequence[Change]) -> Future[bool]:
        """Write changes. True: they are in the file; False: the file is behind."""
        with self._lock:
            return self._enqueue(changes)

    @property
    def wants_state(self) -> bool:
        """The file is behind, and it is time to try ``rewrite``."""
        return self.behind and time.monotonic() >= self._retry_at

    def rewrite(self, state: State) -> Future[bool]:
        """Put ``state`` in place of what the file holds; stored rows newer than its rows stay."""
        with self._lock:
            self.behind = False
            return self._enqueue((Replace(state),))

    def page(self, after_id: int, limit: int) -> Future[list[Row] | None]:
        """Rows with greater ids, in order, at most ``limit``; None: the file cannot be read.

        Sees every commit that was made before.
        """
        return self._thread.submit(self._page, after_id, limit)

    def close(self) -> None:
        """Finish what waits, at most ``CLOSE_TIMEOUT_S``, and let the file go. Nothing after it."""
        try:
            self._thread.submit(self._file.close).result(CLOSE_TIMEOUT_S)
        except TimeoutError:
            _log.warning("the disk did not finish in time; some reports may be sent twice")
        self._thread.shutdown(wait=False)

    def _enqueue(self, changes: Sequence[Change]) -> Future[bool]:
        """Hand changes to the thread; the lock is held."""
        future: Future[bool] = Future()
        full = self._waiting_changes + len(changes) > MAX_WAITING
        if self._waiting and full and not self.behind:
            self.behind = True
            self._retry_at = time.monotonic() + RETRY_S
        if self.behind:
            self.failures += 1
            future.set_result(False)
            return future
        self._waiting.append((changes, future))
        self._waiting_changes += len(changes)
        if len(self._waiting) == 1:
            self._thread.submit(self._drain)
        return future

    # ---------------------------------------------------------------- in the thread

    def _load(self) -> State:
        try:
            return self._file.read()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        try:
            return self._file.read_without_writing()
        except (sqlite3.Error, msgspec.MsgspecError, TypeError, ValueError, OSError):
            return State()

    def _page(self, after_id: int, limit: int) -> list[Row] | None:
        try:
            return self._file.rows(after_id, limit)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return None

    def _drain(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._waiting_changes = 0
            behind = self.behind  # an earlier commit is missing: none after it may go in
        done = False
        try:
            if not behind:
                self._file.write(change for changes, _ in waiting for change in changes)
                done = True
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._failed(error)
        if not done:
            self.failures += len(waiting)
        for _, future in waiting:
            future.set_result(done)

    def _failed(self, error: Exception) -> None:
        self._file.close()
        removed = isinstance(error, FileNotFoundError)  # making it again may help at once
        self._fell_behind(str(error) or type(error).__name__, 0.0 if removed else RETRY_S)

    def _fell_behind(self, reason: str, retry_s: float = RETRY_S) -> None:
        now = time.monotonic()
        with self._lock:
            self.behind = True
            self._retry_at = now + retry_s
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            _log.warning("%s: %s; accounts are kept in memory only", self._file.path, reason)
