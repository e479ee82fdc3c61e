"""What a run that ended whole had not told: where it is put, and that it is accounted once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from reporter import inheritance
from reporter.daybook import Daybook
from reporter.load import Load
from reporter.messages import Closed, Events, Opened, Outcome, Totals
from reporter.records import Change, Row, State
from reporter.store import Store
from supervisor import run_dir
from supervisor.settings import Settings, WorkerSettings

NAME = "ingress-0"
RUN = "run-1"
WALL_S = 1_790_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state")
    yield made
    made.close()


def settings(tmp_path: Path) -> Settings:
    return Settings(worker=WorkerSettings(state_dir=str(tmp_path / "state")))


def runtime_dir(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir(exist_ok=True)
    return made


def ended(seq: int, key: int, epoch: int = 1) -> Events:
    """A batch in which one more request began and ended, at monotonic second ``10 + seq``."""
    at = 10.0 + seq
    totals = Totals(received=float(seq), served=float(seq), requests=seq)
    opened = [Opened(key, key, 1.0, at - 0.5)]
    closed = [Closed(key, key, 1.0, Outcome.SUCCESS.value, at - 0.5, at - 0.25, at)]
    return Events(NAME, epoch, seq, opened, closed, totals, {})


def leave(tmp_path: Path, *batches: Events, written_at: float = WALL_S, run_id: str = RUN) -> None:
    """A run that is over had written these, the last of them at this time."""
    directory = runtime_dir(tmp_path)
    book = Daybook(f"ipc://{directory}/events", NAME)
    book.open()
    for batch in batches:
        book.append(batch)
    book.close()
    os.utime(directory / f"accounts_{NAME}", (written_at, written_at))
    run_dir.remove(str(directory), settings(tmp_path), run_id)
    assert not directory.exists()


def confirmed(store: Store, *batches: Events, run_id: str = RUN) -> None:
    """The reporter of that run had taken these."""
    load = Load(run_id)
    assert store.commit(load.adopt(store.load()).changes).result(10)
    for batch in batches:
        assert store.commit(load.apply(batch, 0.0, WALL_S - 12.0).changes).result(10)


def settle(store: Store) -> State:
    """As the store would read it: without producers that have nothing open."""
    state = inheritance.settle(store, "run-9")
    return msgspec.structs.replace(state, open={k: v for k, v in state.open.items() if v})


def told(state: State) -> list[int]:
    return [row.request_idx for row in state.rows]


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "state" / "inheritance").glob("*/*"))


def test_what_was_not_confirmed_is_accounted_and_what_was_is_not_again(
    tmp_path: Path, store: Store
) -> None:
    batches = [ended(seq, seq) for seq in (1, 2, 3)]
    confirmed(store, *batches[:2])
    leave(tmp_path, *batches[1:])
    assert kept(tmp_path) == [f"accounts_{NAME}"]
    state = settle(store)
    assert told(state) == [1, 2, 3]
    assert state.rows[-1] == Row(3, 3, "Success", WALL_S - 0.5, WALL_S - 0.25, WALL_S)
    assert state.ledgers[0].totals == batches[-1].totals
    assert not (tmp_path / "state" / "inheritance").exists()
    assert settle(store) == state
    adopted = Load("run-2")
    adopted.adopt(state)
    assert adopted.totals == msgspec.structs.replace(batches[-1].totals, requests=0)


def test_it_is_settled_once_where_the_reporter_dies_before_it_is_removed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed(store)
    leave(tmp_path, ended(1, 1), ended(2, 2))
    with monkeypatch.context() as dying:
        dying.setattr("shutil.rmtree", lambda *args, **options: None)
        dying.setattr("pathlib.Path.unlink", lambda self: None)
        state = settle(store)
    assert kept(tmp_path) and told(state) == [1, 2]
    assert settle(store) == state
    assert not kept(tmp_path)


def test_gaps_and_later_lives_keep_nothing_back(tmp_path: Path, store: Store) -> None:
    """A batch that is missing was confirmed while the disk took nothing."""
    confirmed(store)
    leave(tmp_path, ended(2, 2), ended(4, 4), ended(1, 5, epoch=2), ended(3, 6, epoch=2))
    state = settle(store)
    assert told(state) == [2, 4, 5, 6]


def test_totals_alone_are_accounted_too(tmp_path: Path, store: Store) -> None:
    confirmed(store)
    leave(tmp_path, Events(NAME, 1, 1, [], [], Totals(received=2.0, rejected=2.0), {}))
    assert settle(store).ledgers[0].totals.rejected == 2.0


def test_a_run_whose_reporter_never_began_is_accounted_after_the_one_before_it(
    tmp_path: Path, store: Store
) -> None:
    confirmed(store, ended(1, 1))
    leave(tmp_path, ended(1, 7, epoch=2), run_id="run-2")
    leave(tmp_path, ended(2, 2))
    state = settle(store)
    assert told(state) == [1, 2, 7]
    assert state.run_id == "run-2"
    assert settle(store) == state


def test_a_reporter_that_starts_again_in_a_run_ends_nothing_of_it(
    tmp_path: Path, store: Store
) -> None:
    """Earlier runs come before this one, or wait for the next start."""
    confirmed(store, ended(1, 1), run_id="run-9")
    leave(tmp_path, ended(1, 7, epoch=2))
    state = settle(store)
    assert (state.run_id, told(state)) == ("run-9", [1]) and state.ledgers
    assert kept(tmp_path)


def test_a_new_store_tells_nothing_of_earlier_runs(tmp_path: Path, store: Store) -> None:
    leave(tmp_path, ended(1, 1))
    own = tmp_path / "state" / "own"
    own.write_text("somebody's")
    assert told(settle(store)) == []
    assert not (tmp_path / "state" / "inheritance").exists()
    assert own.exists()


def refuse(changes: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_takes_nothing_has_it_accounted_in_memory(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed(store, ended(1, 1))
    leave(tmp_path, ended(2, 2))
    monkeypatch.setattr(store._file, "write", refuse)
    state = settle(store)
    assert told(state) == [1, 2] and state.next_row_id == 3
    assert not kept(tmp_path)


def test_a_disk_that_hangs_is_not_waited_for(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed(store)
    leave(tmp_path, ended(1, 1))
    going_on = threading.Event()
    write = store._file.write

    def hang(changes: Iterable[Change]) -> None:
        going_on.wait(30)
        write(changes)

    monkeypatch.setattr(store._file, "write", hang)
    monkeypatch.setattr(inheritance, "PATIENCE_S", 0.1)
    try:
        state = settle(store)
    finally:
        going_on.set()
    assert told(state) == [1]
    assert store.load() == state  # it came there after all, once


@pytest.mark.parametrize("takes", [True, False])
def test_more_rows_than_memory_holds_stay_in_order(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    for module in ("reporter.inheritance", "reporter.accounts_file"):
        monkeypatch.setattr(f"{module}.MEMORY_ROWS", 2)
    confirmed(store, ended(1, 1), ended(2, 2))
    leave(tmp_path, ended(3, 3))
    if not takes:
        monkeypatch.setattr(store._file, "write", refuse)
    state = settle(store)
    assert (told(state), state.more_rows) == ([1, 2], 1 if takes else 0)
    assert bool(kept(tmp_path)) is not takes  # there is no place for it: the next start has it


def test_a_store_that_cannot_be_read_keeps_it_for_the_next_start(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed(store)
    leave(tmp_path, ended(1, 1))
    with monkeypatch.context() as broken:
        for name in ("read", "read_without_writing"):
            broken.setattr(store._file, name, lambda: refuse(None))
        assert settle(store) == State()
    assert kept(tmp_path)
    later = Store(tmp_path / "state")
    try:
        assert told(settle(later)) == [1]
    finally:
        later.close()


def test_a_directory_that_cannot_be_read_keeps_nobody_from_starting(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Path) -> list[Path]:
        raise OSError(5, "Input/output error")

    confirmed(store)
    leave(tmp_path, ended(1, 1))
    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.iterdir", fail)
        assert told(settle(store)) == []
    assert kept(tmp_path)
    assert told(settle(store)) == [1]


def test_damage_costs_the_batch_that_it_is_in(tmp_path: Path, store: Store) -> None:
    confirmed(store)
    leave(tmp_path, ended(1, 1), ended(2, 2))
    path = run_dir.inheritance(tmp_path / "state") / RUN / f"accounts_{NAME}"
    path.write_bytes(path.read_bytes().replace(b"Success", b"Succe\xf5s", 1))
    assert told(settle(store)) == [2]


def test_a_file_that_cannot_be_accounted_keeps_nobody_from_starting(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> list[Events]:
        raise ArithmeticError("a bug")

    confirmed(store)
    leave(tmp_path, ended(1, 1))
    monkeypatch.setattr("reporter.daybook.read", fail)
    assert told(settle(store)) == []
    assert "cannot be read" in caplog.text and not kept(tmp_path)


def test_times_are_those_of_the_clock_that_the_events_were_told_by(
    tmp_path: Path, store: Store
) -> None:
    """Exact within one start of the machine; before it, as late as the file was written."""
    confirmed(store)
    now, offset_s = time.monotonic(), time.time() - time.monotonic()
    recent = msgspec.structs.replace(
        ended(1, 1), closed=[Closed(1, 1, 1.0, "Success", now - 2.0, now - 1.5, now - 1.0)]
    )
    leave(tmp_path, recent, written_at=time.time() + 3600.0)
    (row,) = settle(store).rows
    assert row.completed_at == pytest.approx(now - 1.0 + offset_s, abs=0.1)


def test_files_that_are_no_accounts_are_passed_over(tmp_path: Path, store: Store) -> None:
    confirmed(store)
    leave(tmp_path, ended(1, 1))
    directory = run_dir.inheritance(tmp_path / "state") / RUN
    (directory / "accounts_a.17.new").write_bytes((directory / f"accounts_{NAME}").read_bytes())
    (directory / "accounts_b").write_bytes(b"\xff" * 100)
    (directory / "accounts_c").mkdir()
    assert told(settle(store)) == [1]


def test_only_accounts_that_hold_something_outlive_a_run(tmp_path: Path) -> None:
    directory = runtime_dir(tmp_path)
    for name, data in (("accounts_a", b"x"), ("accounts_b", b""), ("accounts_a.new", b"x"),
                       ("settings.msgpack", b"x")):  # fmt: skip
        (directory / name).write_bytes(data)
    run_dir.remove(str(directory), settings(tmp_path), RUN)
    assert kept(tmp_path) == ["accounts_a"] and not directory.exists()
    for path in (tmp_path / "state", tmp_path / "state" / "inheritance"):
        assert path.stat().st_mode & 0o777 == 0o700
    run_dir.remove(str(directory), settings(tmp_path), RUN)  # whoever comes second


def test_a_state_directory_that_takes_nothing_costs_the_accounts_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("no directory")
    directory = runtime_dir(tmp_path)
    (directory / "accounts_a").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        run_dir.remove(str(directory), settings(tmp_path), RUN)
    assert not directory.exists()
    assert "accounts of the last moments are lost" in caplog.text


def test_a_copy_that_did_not_come_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"x")
        raise OSError(28, "No space left on device")

    directory = runtime_dir(tmp_path)
    (directory / "accounts_a").write_bytes(b"xyz")
    (directory / "token").write_bytes(b"x")
    (directory / "sessions").mkdir()
    with monkeypatch.context() as disk:
        disk.setattr("shutil.copyfile", full)
        run_dir.remove(str(directory), settings(tmp_path), RUN, last=False)
        assert kept(tmp_path) == []
        assert os.listdir(directory) == ["accounts_a"]  # for the next start, and no token with it
    run_dir.remove(str(directory), settings(tmp_path), RUN)
    assert kept(tmp_path) == ["accounts_a"]
    assert not directory.exists()
