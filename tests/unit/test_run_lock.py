"""One run per state directory."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from supervisor.control_client import ControlError, running
from supervisor.run_lock import AlreadyRunning, RunLock, RunLockError, read_running

ROOT = str(Path(__file__).parents[2])


def test_nobody_runs_without_a_file(tmp_path: Path) -> None:
    assert read_running(str(tmp_path)) is None
    assert read_running(str(tmp_path / "missing")) is None


def test_facts_are_read_while_the_lock_is_held(tmp_path: Path) -> None:
    state_dir = str(tmp_path / "deep" / "state")
    lock = RunLock(state_dir)
    lock.acquire()
    assert os.stat(state_dir).st_mode & 0o777 == 0o700
    assert lock.publish(worker_url="http://127.0.0.1:3000")
    facts = read_running(state_dir)
    assert facts is not None
    assert facts["pid"] == os.getpid()
    assert facts["worker_url"] == "http://127.0.0.1:3000"
    lock.publish(worker_url="x")
    assert (read_running(state_dir) or {})["worker_url"] == "x"
    lock.release()
    lock.release()
    assert read_running(state_dir) is None  # the file is still there


def test_a_second_run_is_told_who_runs(tmp_path: Path) -> None:
    first, second = RunLock(str(tmp_path)), RunLock(str(tmp_path))
    first.acquire()
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}") as caught:
        second.acquire()
    assert caught.value.pid == os.getpid()
    assert "worker.state_dir" in str(caught.value)
    first.release()
    second.acquire()
    second.release()


def test_what_a_run_left_behind_is_known_to_the_next(tmp_path: Path) -> None:
    first = RunLock(str(tmp_path))
    first.acquire()
    first.publish(run_id="12-ab")
    os.close(first._fd)  # as the kernel does when the process is killed
    second = RunLock(str(tmp_path))
    second.acquire()
    assert second.left_behind["run_id"] == "12-ab"
    second.release()
    third = RunLock(str(tmp_path))
    third.acquire()
    assert third.left_behind == {}  # the one before it ended well
    third.release()


def test_what_was_left_behind_is_known_until_it_is_swept(tmp_path: Path) -> None:
    """A start that is killed before it has swept must not be the last one to know."""
    first = RunLock(str(tmp_path))
    first.acquire()
    first.publish(run_id="12-ab", runtime_dir="/tmp/lighterman-x", worker_url="http://h")
    left = {"run_id": "12-ab", "runtime_dir": "/tmp/lighterman-x"}
    os.close(first._fd)
    for _ in range(2):
        killed = RunLock(str(tmp_path))
        killed.acquire()
        assert killed.left_behind == left
        os.close(killed._fd)
    swept = RunLock(str(tmp_path))
    swept.acquire()
    swept.swept()
    os.close(swept._fd)
    last = RunLock(str(tmp_path))
    last.acquire()
    assert last.left_behind == {}
    last.swept()
    last.release()


def test_what_a_killed_holder_has_left_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    """Between taking the lock and writing: whoever believed it would wait for a dead socket."""
    script = (
        "import os, signal, sys\n"
        "from supervisor.run_lock import RunLock\n"
        "lock = RunLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "lock.publish(runtime_dir='/tmp/lighterman-dead')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    with (tmp_path / "run.lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the next holder begins
        assert read_running(str(tmp_path)) == {}
        for odd in (b'{"pid": "x"}', b'{"pid": 99999999999}', b'{"pid": -1}', b"[]"):
            file.seek(0)
            file.truncate()
            file.write(odd)
            file.flush()
            assert read_running(str(tmp_path)) == {}
        file.seek(0)
        file.truncate()
        file.write(b'{"pid": 1}')
        file.flush()
        assert read_running(str(tmp_path)) == {"pid": 1}


def test_a_file_left_by_a_crash_is_harmless(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from supervisor.run_lock import RunLock\n"
        "lock = RunLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "lock.publish(worker_url='http://dead' * 100)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert b"http://dead" in (tmp_path / "run.lock").read_bytes()
    assert read_running(str(tmp_path)) is None
    lock = RunLock(str(tmp_path))
    lock.acquire()
    assert "worker_url" not in (read_running(str(tmp_path)) or {})
    lock.release()


def test_a_reader_never_sees_half_a_text_nor_keeps_a_run_from_starting(tmp_path: Path) -> None:
    lock = RunLock(str(tmp_path))
    lock.acquire()
    done = threading.Event()
    bad: list[object] = []

    def read() -> None:
        while not done.is_set():
            facts = read_running(str(tmp_path))
            if facts is not None and facts.get("pid") != os.getpid():
                bad.append(facts)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for size in range(0, 3000, 7):
            lock.publish(text="x" * (size % 500))
        for _ in range(20):
            lock.release()
            lock.acquire()
    finally:
        done.set()
        reader.join()
        lock.release()
    assert bad == []


def test_a_holder_that_published_nothing(tmp_path: Path) -> None:
    lock = RunLock(str(tmp_path))
    lock.acquire()
    (tmp_path / "run.lock").write_bytes(b"")
    assert read_running(str(tmp_path)) == {}
    with pytest.raises(AlreadyRunning, match="pid unknown"):
        RunLock(str(tmp_path)).acquire()
    lock.release()


def test_a_full_disk_does_not_stop_the_run(tmp_path: Path) -> None:
    lock = RunLock(str(tmp_path))
    os.symlink("/dev/full", tmp_path / "run.lock")
    lock.acquire()
    assert not lock.publish(worker_url="x")
    lock.release()


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunLockError, match=r"set worker\.state_dir"):
        RunLock(str(tmp_path / "file" / "state")).acquire()
    os.mkdir(tmp_path / "run.lock")
    with pytest.raises(RunLockError, match="cannot use"):
        RunLock(str(tmp_path)).acquire()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RunLockError, match="cannot look"):
        read_running(str(tmp_path / "loop"))


def test_facts_that_only_fit_in_part_are_written_again(tmp_path: Path) -> None:
    """A disk that is nearly full takes the beginning of a text, and says so by its length."""
    lock = RunLock(str(tmp_path))
    lock.acquire()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            assert not lock.publish(run_id="x" * 200)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert lock.publish()
        facts = read_running(str(tmp_path))
        assert facts is not None and facts["run_id"] == "x" * 200
    finally:
        lock.release()


def test_a_file_that_was_removed_is_locked_and_published_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    lock = RunLock(str(state))
    lock.acquire()
    lock.publish(worker_url="x")
    lock.keep()
    assert caplog.messages == []
    shutil.rmtree(state)
    lock.keep()
    facts = read_running(str(state))
    assert facts is not None and facts["worker_url"] == "x"
    assert caplog.messages == [f"the state directory {state} had been removed; made again"]
    with pytest.raises(AlreadyRunning):
        RunLock(str(state)).acquire()
    lock.release()


def test_a_place_that_another_run_has_taken_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    first, second = RunLock(str(state)), RunLock(str(state))
    first.acquire()
    shutil.rmtree(state)
    second.acquire()
    for _ in range(3):
        first.keep()
    (said,) = caplog.messages
    assert f"another worker (pid {os.getpid()}) uses its place" in said
    second.release()
    first.keep()
    assert "made again" in caplog.messages[-1]
    shutil.rmtree(state)
    state.write_text("no directory")
    first.keep()
    assert "cannot be made again" in caplog.messages[-1]
    first.release()


def test_a_lock_that_may_not_be_looked_at_is_told_to_who_asks(tmp_path: Path) -> None:
    (tmp_path / "run.lock").symlink_to("run.lock")  # not even root can open it
    with pytest.raises(RunLockError, match="cannot look at"):
        read_running(str(tmp_path))
    with pytest.raises(ControlError, match="--state-dir"):
        running(str(tmp_path))


def test_a_file_system_that_locks_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunLock(str(tmp_path))
    lock.acquire()

    def refuse(fd: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    for ask in (RunLock(str(tmp_path)).acquire, lambda: read_running(str(tmp_path))):
        with pytest.raises(RunLockError, match="cannot be locked"):
            ask()
    (tmp_path / "run.lock").unlink()
    before = len(os.listdir("/proc/self/fd"))
    lock.keep()
    assert len(os.listdir("/proc/self/fd")) == before
    lock.release()
