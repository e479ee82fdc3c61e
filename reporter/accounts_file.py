"""The SQLite file that holds the accounts: its tables, and how a change is written.

Responsible for the file alone. It blocks, it raises ``sqlite3.Error`` and ``OSError`` as they come,
and it belongs to one thread: ``store.py`` is what the loop may touch.

Law: the file is whole. A commit is one transaction, forced to the disk (WAL, synchronous=FULL): it
survives the kill of any process, and a power cut. A file that is no database, or another version's,
is moved aside, and an earlier one that was moved aside goes. One that somebody removed takes
nothing any more: ``write`` raises, and the next call makes a new file.
Bound: ``max_rows`` rows, some 80 MB for a million; beyond it the oldest go, counted.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

from reporter import records
from reporter.messages import Totals
from reporter.outbox import MEMORY_ROWS
from supervisor import private_dir

VERSION = 1

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE ledgers (
    producer TEXT PRIMARY KEY, epoch TEXT NOT NULL, seq INTEGER NOT NULL, totals BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE open_requests (
    producer TEXT NOT NULL, key INTEGER NOT NULL, request_idx TEXT NOT NULL,
    workload REAL NOT NULL, entered_at REAL NOT NULL, PRIMARY KEY (producer, key)
) WITHOUT ROWID;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, request_idx TEXT NOT NULL, status TEXT NOT NULL,
    entered_at REAL NOT NULL, started_at REAL NOT NULL, completed_at REAL NOT NULL
);
"""

_log = logging.getLogger("reporter.store")
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode
_T = TypeVar("_T")


class AccountsFile:
    """One connection to the file, opened when it is first needed.

    Args:
        path: absolute path of the file; its directory is made when it is missing.
        max_rows: undelivered rows that are kept at most.
    """

    def __init__(self, path: Path, max_rows: int) -> None:
        self.path = path
        self.dropped_rows = 0  #: rows beyond ``max_rows``
        self._max_rows = max_rows
        self._connection: sqlite3.Connection | None = None
        self._opened = (0, 0)  # device and inode of the file that it has
        self._row_count = 0

    def read(self) -> records.State:
        """Everything, the oldest ``MEMORY_ROWS`` rows among it."""
        try:
            return _read(self._open())
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            self.close()
            self._move_aside(error)
            return _read(self._open())

    def read_without_writing(self) -> records.State:
        """As ``read`` when the disk takes no byte more: opening alone writes beside the file.

        Empty when there is no file, or one that needs its log to be read.
        """
        log = self._beside("-wal")
        if not self.path.exists() or (log.exists() and log.stat().st_size):
            return records.State()
        connection = sqlite3.connect(f"{self.path.as_uri()}?immutable=1", uri=True)
        try:
            return _read(connection)
        finally:
            connection.close()

    def rows(self, after_id: int, limit: int) -> list[records.Row]:
        """Rows with greater ids, in order."""
        return _rows(self._open(), after_id, limit)

    def write(self, changes: Iterable[records.Change]) -> None:
        """One transaction: all of the changes, or an exception and none of them."""
        if self._connection is not None and not self._is_there():
            raise FileNotFoundError(
                "the file has been removed"
            )  # SQLite would write on, for nobody
        connection = self._open()
        with connection:
            connection.execute("BEGIN")
            for change in changes:
                self._write(connection, change)

    def close(self) -> None:
        """Let the file go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            private_dir.make(str(self.path.parent))
            try:
                self._connection = _connect(self.path)
            except sqlite3.OperationalError:
                raise  # the disk's fault, not the file's
            except sqlite3.DatabaseError as error:
                self._move_aside(error)
                self._connection = _connect(self.path)
            self._opened = self._identity()
            (self._row_count,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return self._connection

    def _identity(self) -> tuple[int, int]:
        there = self.path.stat()
        return there.st_dev, there.st_ino

    def _is_there(self) -> bool:
        try:
            return self._identity() == self._opened
        except FileNotFoundError:
            return False

    def _move_aside(self, error: Exception) -> None:
        aside = self._beside(".unreadable")
        _log.warning("%s is unreadable (%s); moved to %s", self.path, error, aside)
        for suffix in ("-wal", "-shm"):
            self._beside(suffix).unlink(missing_ok=True)
        self.path.replace(aside)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _write(self, connection: sqlite3.Connection, change: records.Change) -> None:
        match change:
            case records.Replace(state):
                self._replace(connection, state)
            case records.SaveRun(run_id):
                _save_fact(connection, "run_id", run_id)
            case records.SaveBase(base):
                _save_fact(connection, "base", base)
            case records.SaveMarks(marks):
                _save_fact(connection, "marks", marks)
            case records.SaveLedger(ledger):
                connection.execute(
                    "INSERT OR REPLACE INTO ledgers VALUES (?, ?, ?, ?)",
                    (ledger.producer, str(ledger.epoch), ledger.seq, _encode(ledger.totals)),
                )
            case records.DropLedger(producer):
                connection.execute("DELETE FROM ledgers WHERE producer = ?", (producer,))
            case records.SaveOpen(producer, requests):
                connection.executemany(
                    "INSERT OR REPLACE INTO open_requests VALUES (?, ?, ?, ?, ?)",
                    (
                        (producer, r.key, str(r.request_idx), r.workload, r.entered_at)
                        for r in requests
                    ),
                )
            case records.DropOpen(producer, keys):
                connection.executemany(
                    "DELETE FROM open_requests WHERE producer = ? AND key = ?",
                    ((producer, key) for key in keys),
                )
            case records.ClearOpen(producer):
                connection.execute("DELETE FROM open_requests WHERE producer = ?", (producer,))
            case records.SaveRows(rows):
                self._save_rows(connection, rows)
            case records.DropRows(through_id):
                gone = connection.execute("DELETE FROM rows WHERE id <= ?", (through_id,))
                self._row_count -= gone.rowcount
            case _:
                assert_never(change)

    def _replace(self, connection: sqlite3.Connection, state: records.State) -> None:
        for table in ("facts", "ledgers", "open_requests"):
            connection.execute(f"DELETE FROM {table}")
        # Every older id is delivered, or among the rows that are written now.
        through_id = state.rows[-1].id if state.rows else state.delivered_through_id
        changes: list[records.Change] = [
            records.SaveRun(state.run_id),
            records.SaveBase(state.base),
            records.SaveMarks(state.marks),
            records.DropRows(through_id),
            records.SaveRows(state.rows),
        ]
        changes += [records.SaveLedger(ledger) for ledger in state.ledgers]
        changes += [records.SaveOpen(name, requests) for name, requests in state.open.items()]
        for change in changes:
            self._write(connection, change)

    def _save_rows(self, connection: sqlite3.Connection, rows: Sequence[records.Row]) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)",
            (
                (r.id, str(r.request_idx), r.status, r.entered_at, r.started_at, r.completed_at)
                for r in rows
            ),
        )
        self._row_count += len(rows)
        if self._row_count > self._max_rows:
            gone = connection.execute(
                "DELETE FROM rows WHERE id IN (SELECT id FROM rows ORDER BY id LIMIT ?)",
                (self._row_count - self._max_rows,),
            )
            self._row_count -= gone.rowcount
            self.dropped_rows += gone.rowcount


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version}, not {VERSION}")
        else:
            (fault,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise sqlite3.DatabaseError(fault)
    except BaseException:
        connection.close()
        raise
    return connection


def _read(connection: sqlite3.Connection) -> records.State:
    facts = dict(connection.execute("SELECT name, value FROM facts"))
    opened: dict[str, list[records.OpenRequest]] = {}
    query = "SELECT producer, key, request_idx, workload, entered_at FROM open_requests"
    for producer, key, request_idx, workload, entered_at in connection.execute(query):
        request = records.OpenRequest(key, int(request_idx), workload, entered_at)
        opened.setdefault(producer, []).append(request)
    (count, newest) = connection.execute(
        "SELECT count(*), coalesce(max(id), 0) FROM rows"
    ).fetchone()
    rows = tuple(_rows(connection, -1, MEMORY_ROWS))
    return records.State(
        run_id=_fact(facts, "run_id", str, ""),
        base=_fact(facts, "base", Totals, Totals()),
        marks=_fact(facts, "marks", records.Marks, records.Marks()),
        ledgers=tuple(
            records.LedgerRecord(producer, int(epoch), seq, _decode(totals, type=Totals))
            for producer, epoch, seq, totals in connection.execute(
                "SELECT producer, epoch, seq, totals FROM ledgers"
            )
        ),
        open={producer: tuple(requests) for producer, requests in opened.items()},
        rows=rows,
        more_rows=count - len(rows),
        next_row_id=newest + 1,
    )


def _rows(connection: sqlite3.Connection, after_id: int, limit: int) -> list[records.Row]:
    query = (
        "SELECT id, request_idx, status, entered_at, started_at, completed_at FROM rows"
        " WHERE id > ? ORDER BY id LIMIT ?"
    )
    return [
        records.Row(row_id, int(request_idx), status, entered_at, started_at, completed_at)
        for row_id, request_idx, status, entered_at, started_at, completed_at in connection.execute(
            query, (after_id, limit)
        )
    ]


def _fact(facts: dict[str, bytes], name: str, kind: type[_T], default: _T) -> _T:
    return _decode(facts[name], type=kind) if name in facts else default


def _save_fact(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, _encode(value)))
