"""Used nonces in a file: shared by processes, kept over restarts, and no if it cannot be asked."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from ingress.nonce_file import LOCK_PATIENCE_S, NAME, NonceFile
from ingress.nonces import SIZE_BYTES, Verdict

KEY = bytes(range(16))
NOW = 1_800_000_000


def test_whoever_asks_second_is_told_so(tmp_path: Path) -> None:
    one, two = NonceFile(str(tmp_path)), NonceFile(str(tmp_path))
    assert one.take(KEY, NOW + 60, NOW) is Verdict.NEW
    assert two.take(KEY, NOW + 60, NOW) is Verdict.USED
    assert one.take(KEY, NOW + 60, NOW) is Verdict.USED
    assert NonceFile(str(tmp_path)).take(KEY, NOW + 60, NOW) is Verdict.USED
    assert two.take(KEY[::-1], NOW + 60, NOW) is Verdict.NEW
    made = (tmp_path / NAME).stat()
    assert made.st_size == SIZE_BYTES
    assert made.st_blocks * 512 >= SIZE_BYTES  # its room is taken now, not when the disk is full
    assert stat.S_IMODE(made.st_mode) == 0o600


def test_without_a_file_nothing_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "gone"
    file = NonceFile(str(directory))
    assert file.take(KEY, NOW + 60, NOW) is Verdict.UNKNOWN
    directory.mkdir()
    assert file.take(KEY, NOW + 60, NOW) is Verdict.UNKNOWN  # looked for once a second
    assert file.take(KEY, NOW + 60, NOW + 1) is Verdict.NEW
    assert file.take(KEY, NOW + 60, NOW + 1) is Verdict.USED
    assert len(caplog.records) == 1 and "No such file" in caplog.text


def test_without_room_on_the_disk_nothing_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    fds = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        file = NonceFile(str(tmp_path))
        assert file.take(KEY, NOW + 60, NOW) is Verdict.UNKNOWN
        assert file.take(KEY, NOW + 60, NOW + 1) is Verdict.UNKNOWN
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert set(os.listdir("/proc/self/fd")) == fds
    assert file.take(KEY, NOW + 60, NOW + 2) is Verdict.NEW


def test_a_process_that_holds_the_lock_for_ever_costs_a_moment(tmp_path: Path) -> None:
    file = NonceFile(str(tmp_path))
    assert file.take(KEY, NOW + 60, NOW) is Verdict.NEW
    with (tmp_path / NAME).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        began = time.monotonic()
        assert file.take(KEY[::-1], NOW + 60, NOW) is Verdict.UNKNOWN
        assert LOCK_PATIENCE_S <= time.monotonic() - began < 100 * LOCK_PATIENCE_S
        began = time.monotonic()
        for _ in range(1000):  # a moment for all of them, or the loop would miss its heartbeats
            assert file.take(KEY[::-1], NOW + 60, NOW) is Verdict.UNKNOWN
        assert time.monotonic() - began < 100 * LOCK_PATIENCE_S
    assert file.take(KEY[::-1], NOW + 60, NOW) is Verdict.NEW


def test_a_file_that_was_removed_is_made_again_with_all_that_was_known(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    one, two = NonceFile(str(directory)), NonceFile(str(directory))
    assert one.take(KEY, NOW + 60, NOW) is Verdict.NEW
    fds = len(os.listdir("/proc/self/fd"))
    (directory / NAME).unlink()
    directory.rmdir()
    assert two.take(KEY, NOW + 60, NOW) is Verdict.UNKNOWN, "nowhere to ask"
    directory.mkdir()
    one.keep(NOW + 1)
    newcomer = NonceFile(str(directory))
    assert newcomer.take(KEY, NOW + 60, NOW + 1) is Verdict.USED
    assert newcomer.take(KEY[::-1], NOW + 60, NOW + 1) is Verdict.NEW
    assert two.take(KEY[::-1], NOW + 60, NOW + 1) is Verdict.USED, "it has found the new one"
    assert len(os.listdir("/proc/self/fd")) == fds + 2 and one.take(
        KEY, NOW + 60, NOW + 1
    )  # 1, map


def test_another_file_in_its_place_learns_what_was_known(tmp_path: Path) -> None:
    one = NonceFile(str(tmp_path))
    assert one.take(KEY, NOW + 60, NOW) is Verdict.NEW
    (tmp_path / NAME).unlink()
    newcomer = NonceFile(str(tmp_path))  # before anybody noticed
    with (tmp_path / NAME).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        one.keep(NOW)
    one.keep(NOW)
    assert newcomer.take(KEY, NOW + 60, NOW + 1) is Verdict.USED


def test_a_removed_file_is_made_again_with_all_it_held(tmp_path: Path) -> None:
    one, two = NonceFile(str(tmp_path)), NonceFile(str(tmp_path))
    assert one.take(KEY, NOW + 60, NOW) is Verdict.NEW
    (tmp_path / NAME).unlink()
    successor = NonceFile(str(tmp_path))  # of a process that died: it makes an empty one
    late = bytes(reversed(KEY))
    assert successor.take(late, NOW + 60, NOW) is Verdict.NEW
    two.keep(NOW)
    for each in (successor, one, two, NonceFile(str(tmp_path))):
        assert each.take(KEY, NOW + 60, NOW) is Verdict.USED
        assert each.take(late, NOW + 60, NOW) is Verdict.USED
    third = KEY[8:] + KEY[:8]
    assert one.take(third, NOW + 60, NOW) is Verdict.NEW
    assert [each.take(third, NOW + 60, NOW) for each in (successor, two)] == [Verdict.USED] * 2


def test_a_removed_directory_is_waited_for_and_nothing_is_forgotten(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    file = NonceFile(str(directory))
    assert file.take(KEY, NOW + 60, NOW) is Verdict.NEW
    fds = set(os.listdir("/proc/self/fd"))
    shutil.rmtree(directory)
    assert file.take(KEY[::-1], NOW + 60, NOW) is Verdict.UNKNOWN
    directory.mkdir()
    assert file.take(KEY, NOW + 60, NOW + 1) is Verdict.USED
    assert NonceFile(str(directory)).take(KEY, NOW + 60, NOW + 1) is Verdict.USED
    assert len(os.listdir("/proc/self/fd")) <= len(fds) + 2


def test_a_file_that_was_cut_short_ends_no_process(tmp_path: Path) -> None:
    file, other = NonceFile(str(tmp_path)), NonceFile(str(tmp_path))
    os.truncate(tmp_path / NAME, 0)
    assert file.take(KEY, NOW + 60, NOW) is Verdict.NEW
    os.truncate(tmp_path / NAME, 4096)
    file.keep(NOW)
    assert (tmp_path / NAME).stat().st_size == SIZE_BYTES
    assert other.take(KEY[::-1], NOW + 60, NOW) is Verdict.NEW
    assert file.take(KEY[::-1], NOW + 60, NOW) is Verdict.USED
