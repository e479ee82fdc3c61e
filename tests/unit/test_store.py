"""The store: what is committed survives, and a disk that fails stops nobody."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reporter import accounts_file, records, store
from reporter.accounts_file import AccountsFile
from reporter.messages import Totals
from reporter.store import FILE_NAME, Store

DEADLINE_S = 30
TOTALS = Totals(300.0, 100.0, 0.5, 0.0, 0.0, 3)


def row(row_id: int, request_idx: int = 5) -> records.Row:
    return records.Row(row_id, request_idx, "Success", 1.25, 2.5, 3.75)


def request(key: int) -> records.OpenRequest:
    return records.OpenRequest(key, 1000 + key, 100.0, 1.5)


EVERYTHING: tuple[records.Change, ...] = (
    records.SaveRun("run"),
    records.SaveBase(TOTALS),
    records.SaveMarks(records.Marks(1.0, 2.0, 3.0, 4, 5.5)),
    records.SaveLedger(records.LedgerRecord("ingress-0", 2**63 + 1, 9, TOTALS)),
    records.SaveLedger(records.LedgerRecord("ingress-1", 2, 1, TOTALS)),
    records.SaveOpen("ingress-0", (request(1), request(2))),
    records.SaveOpen("ingress-1", (request(1),)),
    records.SaveRows((row(1), row(2), row(3, 2**64))),
)
STATE = records.State(
    run_id="run",
    base=TOTALS,
    marks=records.Marks(1.0, 2.0, 3.0, 4, 5.5),
    ledgers=(
        records.LedgerRecord("ingress-0", 2**63 + 1, 9, TOTALS),
        records.LedgerRecord("ingress-1", 2, 1, TOTALS),
    ),
    open={"ingress-0": (request(1), request(2)), "ingress-1": (request(1),)},
    rows=(row(1), row(2), row(3, 2**64)),
    next_row_id=4,
)


class Stores:
    """Opens stores in one directory, one after the other, and closes what is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.current: Store | None = None

    def open(self, max_rows: int = store.MAX_ROWS) -> Store:
        self.close()
        self.current = Store(self.directory, max_rows)
        return self.current

    def close(self) -> None:
        if self.current is not None:
            self.current.close()
            self.current = None


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    stores = Stores(tmp_path / "state")
    yield stores
    stores.close()


def commit(opened: Store, *changes: records.Change) -> bool:
    return opened.commit(changes).result(DEADLINE_S)


def fill_the_disk(opened: Store) -> None:
    """From now on SQLite answers SQLITE_FULL, as on a disk without room."""

    def limit() -> None:
        connection = opened._file._connection
        assert connection is not None
        connection.execute("PRAGMA max_page_count = 1")

    opened._thread.submit(limit).result(DEADLINE_S)


def too_much() -> records.SaveRows:
    return records.SaveRows(tuple(row(row_id) for row_id in range(100, 20_000)))


def test_an_empty_directory_gives_an_empty_state(stores: Stores) -> None:
    assert stores.open().load() == records.State()


def test_what_is_committed_is_there_after_a_restart(stores: Stores) -> None:
    opened = stores.open()
    assert commit(opened, *EVERYTHING)
    assert stores.open().load() == STATE


def test_a_commit_is_forced_to_the_disk(tmp_path: Path) -> None:
    """In a log beside the file, and FULL: an fsync of the log before the commit is told."""
    file = AccountsFile(tmp_path / "reports.sqlite", 10)
    file.read()
    try:
        assert file._connection is not None
        (mode,) = file._connection.execute("PRAGMA journal_mode").fetchone()
        (level,) = file._connection.execute("PRAGMA synchronous").fetchone()
        assert (mode, level) == ("wal", 2)
    finally:
        file.close()


def test_changes_that_take_away(stores: Stores) -> None:
    opened = stores.open()
    commit(opened, *EVERYTHING)
    commit(
        opened,
        records.DropLedger("ingress-1"),
        records.ClearOpen("ingress-1"),
        records.DropOpen("ingress-0", (1,)),
        records.DropRows(2),
    )
    state = stores.open().load()
    assert [ledger.producer for ledger in state.ledgers] == ["ingress-0"]
    assert state.open == {"ingress-0": (request(2),)}
    assert [each.id for each in state.rows] == [3]
    assert state.next_row_id == 4


def test_commits_that_were_not_awaited_are_written_before_the_end(stores: Stores) -> None:
    opened = stores.open()
    futures = [opened.commit((records.SaveRows((row(row_id),)),)) for row_id in range(1, 501)]
    stores.close()
    assert all(future.result(0) for future in futures)
    assert len(stores.open().load().rows) == 500


def test_a_page_sees_earlier_commits_and_keeps_the_order(stores: Stores) -> None:
    opened = stores.open()
    opened.commit((records.SaveRows(tuple(row(row_id) for row_id in range(1, 11))),))
    page = opened.page(3, 4).result(DEADLINE_S)
    assert page is not None
    assert [each.id for each in page] == [4, 5, 6, 7]


def test_rows_beyond_memory_stay_in_the_file(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_file, "MEMORY_ROWS", 4)
    opened = stores.open()
    commit(opened, records.SaveRows(tuple(row(row_id) for row_id in range(1, 11))))
    state = stores.open().load()
    assert [each.id for each in state.rows] == [1, 2, 3, 4]
    assert (state.more_rows, state.next_row_id) == (6, 11)


def test_too_many_rows_push_out_the_oldest_and_are_counted(stores: Stores) -> None:
    opened = stores.open(max_rows=10)
    commit(opened, records.SaveRows(tuple(row(row_id) for row_id in range(1, 9))))
    commit(opened, records.SaveRows(tuple(row(row_id) for row_id in range(9, 14))))
    assert opened.dropped_rows == 3
    assert [each.id for each in stores.open().load().rows] == list(range(4, 14))


# ----------------------------------------------------------------------------- bad disks


def test_a_full_disk_stops_nobody_and_heals(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = stores.open()
    assert commit(opened, *EVERYTHING)
    fill_the_disk(opened)
    with caplog.at_level(logging.WARNING):
        assert not commit(opened, too_much())
        assert not commit(opened, records.DropRows(3))
    assert opened.behind
    assert opened.failures == 2
    assert len(caplog.records) == 1
    assert "full" in caplog.text
    wants_at_once = opened.wants_state
    assert not wants_at_once
    monkeypatch.setattr(opened, "_retry_at", 0.0)
    assert opened.wants_state
    newer = records.State(run_id="run", rows=(row(3), row(7)), delivered_through_id=2)
    assert opened.rewrite(newer).result(DEADLINE_S)
    assert commit(opened, records.SaveRows((row(8),)))
    assert opened.failures == 2
    assert [each.id for each in stores.open().load().rows] == [3, 7, 8]


def test_rewriting_keeps_stored_rows_that_memory_has_not_seen(stores: Stores) -> None:
    opened = stores.open()
    commit(opened, records.SaveRows(tuple(row(row_id) for row_id in range(1, 11))))
    state = records.State(run_id="run", rows=(row(3), row(4)), delivered_through_id=2)
    assert opened.rewrite(state).result(DEADLINE_S)
    assert commit(opened, records.DropRows(4))
    state = records.State(run_id="run", delivered_through_id=5)
    assert opened.rewrite(state).result(DEADLINE_S)
    assert [each.id for each in stores.open().load().rows] == [6, 7, 8, 9, 10]


def test_nothing_goes_into_a_file_that_misses_an_earlier_commit(stores: Stores) -> None:
    opened = stores.open()
    assert commit(opened, *EVERYTHING)
    fill_the_disk(opened)
    begun = threading.Event()
    gate = threading.Event()

    class Slow(list[records.Change]):
        """Changes that take until the gate opens."""

        def __iter__(self) -> Iterator[records.Change]:
            begun.set()
            assert gate.wait(DEADLINE_S)
            return super().__iter__()

    first = opened.commit(Slow([too_much()]))
    assert begun.wait(DEADLINE_S)
    later = opened.commit((records.SaveRun("later"),))
    gate.set()
    assert not first.result(DEADLINE_S)
    assert not later.result(DEADLINE_S)
    assert opened.failures == 2
    assert stores.open().load() == STATE


def test_a_file_that_was_removed_is_written_anew_at_once(tmp_path: Path) -> None:
    """SQLite itself would go on writing into the file that nobody can open any more."""
    state = tmp_path / "state"
    opened = Store(state)
    try:
        assert commit(opened, *EVERYTHING)
        shutil.rmtree(state)
        assert not commit(opened, records.DropRows(1))
        assert opened.behind and opened.wants_state
        assert opened.rewrite(STATE).result(DEADLINE_S)
        assert commit(opened, records.SaveRun("later"))
    finally:
        opened.close()
    again = Store(state)
    try:
        assert again.load().run_id == "later"
    finally:
        again.close()


def test_a_directory_that_cannot_be_made_is_retried(tmp_path: Path) -> None:
    blocker = tmp_path / "state"
    blocker.write_text("in the way")
    opened = Store(blocker / "deeper")
    try:
        assert opened.load() == records.State()
        assert opened.behind
        assert not commit(opened, *EVERYTHING)
        assert opened.page(0, 10).result(DEADLINE_S) is None
        blocker.unlink()
        assert opened.behind
        assert opened.rewrite(STATE).result(DEADLINE_S)
        page = opened.page(0, 10).result(DEADLINE_S)
        assert page is not None
        assert len(page) == 3
    finally:
        opened.close()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b"not a database" * 100), id="garbage"),
        pytest.param(lambda path: foreign(path), id="another version"),
        pytest.param(lambda path: undecodable(path), id="undecodable"),
        pytest.param(lambda path: torn(path), id="torn"),
    ],
)
def test_an_unreadable_file_is_moved_aside(
    stores: Stores, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    commit(stores.open(), *EVERYTHING, too_much())
    stores.close()
    path = stores.directory / FILE_NAME
    assert callable(spoil)
    spoil(path)
    opened = stores.open()
    assert opened.load() == records.State()
    assert not opened.behind
    assert path.with_name(FILE_NAME + ".unreadable").exists()
    assert "moved" in caplog.text
    assert commit(opened, *EVERYTHING)
    assert stores.open().load() == STATE


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def undecodable(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE facts SET value = x'c1'")
    connection.close()


def torn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:-8192] = bytes(len(content) - 16384)
    path.write_bytes(content)


def test_a_file_that_cannot_be_opened_for_writing_is_read(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(stores.open(), *EVERYTHING)
    stores.close()

    def full(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(accounts_file, "_connect", full)
    opened = stores.open()
    assert opened.load() == STATE
    assert opened.behind


def test_a_file_that_cannot_be_read_at_all_gives_an_empty_state(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(stores.open(), *EVERYTHING)
    stores.close()
    (stores.directory / FILE_NAME).write_bytes(b"not a database" * 100)

    def full(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(accounts_file, "_connect", full)
    opened = stores.open()
    assert opened.load() == records.State()
    assert opened.behind


def test_a_disk_that_hangs_does_not_fill_memory(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_WAITING", 10)
    opened = stores.open()
    gate = threading.Event()
    opened._thread.submit(gate.wait, DEADLINE_S)
    futures = [opened.commit((records.SaveRun(str(number)),)) for number in range(20)]
    assert not any(future.result(0) for future in futures[10:])
    assert opened.behind
    gate.set()
    assert not any(future.result(DEADLINE_S) for future in futures)
    assert opened.failures == 20


def test_a_disk_that_hangs_at_the_start_and_the_end_is_not_waited_for(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "LOAD_TIMEOUT_S", 0.01)
    monkeypatch.setattr(store, "CLOSE_TIMEOUT_S", 0.01)
    opened = stores.open()
    gate = threading.Event()
    held = opened._thread.submit(gate.wait, DEADLINE_S)
    assert opened.load() == records.State()
    assert opened.behind
    stores.close()
    assert "did not finish" in caplog.text
    gate.set()
    assert held.result(DEADLINE_S)
