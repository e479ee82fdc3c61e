"""Lines out of bytes, and where they go: bounded, masked, never blocking."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor import log_lines, logs
from supervisor.console import Console
from supervisor.log_file import RotatingFile
from supervisor.logs import Capture, LineSplitter, Ring, Tail
from tests.kit.wait import wait_until

# ------------------------------------------------------------------------------ splitter


def test_lines_end_with_newline_or_carriage_return() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntwo\r\nthr") == [b"one", b"two"]
    assert splitter.feed(b"ee\r 10%\r 20%") == [b"three", b" 10%"]
    assert splitter.feed(b"\r") == [b" 20%"]
    assert splitter.feed(b"\n") == []  # the rest of a \r\n
    assert splitter.feed(b"\n\nlast") == [b"", b""]
    assert splitter.flush() == [b"last"]
    assert splitter.flush() == []


def test_a_long_line_is_cut_and_the_rest_counted() -> None:
    splitter = LineSplitter(max_bytes=4)
    assert splitter.feed(b"123456") == []
    assert splitter.feed(b"789\nab") == [b"1234"]
    assert splitter.feed(b"cdefg\nhijkl\n") == [b"abcd", b"hijk"]
    assert splitter.dropped_bytes == 5 + 3 + 1


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\0", b"\n")), max_size=12),
    st.integers(0, 3),
)
@example([b"\r", b"", b"\n"], 0)
def test_how_bytes_are_cut_into_reads_does_not_matter(pieces: list[bytes], more_bytes: int) -> None:
    whole, split = LineSplitter(5, more_bytes), LineSplitter(5, more_bytes)
    expected = whole.feed(b"".join(pieces)) + whole.flush()
    got = [line for piece in pieces for line in split.feed(piece)] + split.flush()
    assert got == expected
    assert split.dropped_bytes == whole.dropped_bytes


# ---------------------------------------------------------------------------------- ring


def test_the_ring_keeps_the_last_lines() -> None:
    ring = Ring()
    ring.extend([f"line {n}" for n in range(1200)])
    lines, cursor = ring.since(0)
    assert (len(lines), lines[0], lines[-1]) == (500, "line 700", "line 1199")
    ring.extend(["new"])
    assert ring.since(cursor) == (["new"], 1201)
    assert ring.since(1201) == ([], 1201)
    assert len(ring.since(99_999)[0]) == 500  # a cursor of an earlier ring


def test_the_ring_is_bounded_in_bytes() -> None:
    ring = Ring()
    ring.extend(["é" * 8000] * 500)
    assert len(ring.since(0)[0]) == (1 << 20) // 16_000


# ------------------------------------------------------------------------- rotating file


def test_rotation_keeps_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "model.log"
    file = RotatingFile(str(path), max_bytes=100, keep=2)
    for number in range(40):
        file.write(b"line %05d\n" % number)
    file.close()
    assert sorted(os.listdir(path.parent)) == ["model.log", "model.log.1", "model.log.2"]
    newest_last = [path.with_name("model.log.2"), path.with_name("model.log.1"), path]
    kept = b"".join(one.read_bytes() for one in newest_last)
    assert kept == b"".join(b"line %05d\n" % number for number in range(18, 40))
    file.write(b"again\n")  # opens itself again, and goes on at the end
    file.close()
    assert path.read_bytes().endswith(b"line 00039\nagain\n")
    assert (file.dropped_bytes, file.error) == (0, "")


def test_an_earlier_runs_bytes_count(tmp_path: Path) -> None:
    path = tmp_path / "model.log"
    path.write_bytes(b"x" * 95 + b"\n")
    file = RotatingFile(str(path), max_bytes=100)
    file.write(b"first\n")
    file.write(b"second\n")
    file.close()
    assert path.read_bytes() == b"second\n"
    assert (tmp_path / "model.log.1").read_bytes().endswith(b"x\nfirst\n")


def test_a_full_disk_is_counted_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "model.log"
    path.symlink_to("/dev/full")
    file = RotatingFile(str(path), max_bytes=4)
    for _ in range(3):
        file.write(b"lost\n")
    assert file.dropped_bytes == 15
    assert "No space left" in file.error
    file.close()
    path.unlink()
    file.write(b"kept\n")
    file.close()
    assert path.read_bytes() == b"kept\n"
    assert file.error == ""
    assert path.parent.joinpath("model.log.1").exists() is False


def test_a_device_is_never_renamed(tmp_path: Path) -> None:
    path = tmp_path / "null"
    path.symlink_to("/dev/null")
    file = RotatingFile(str(path), max_bytes=4)
    for _ in range(5):
        file.write(b"away\n")
    file.close()
    assert path.is_symlink() and os.listdir(tmp_path) == ["null"]
    assert file.dropped_bytes == 0


def test_a_write_cut_short_does_not_tear_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "model.log"
    file = RotatingFile(str(path))
    file.write(b"12345\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        file.write(b"6789012\n")
        assert file.error.endswith("disk full")
        file.write(b"lost\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.write(b"whole\n")
    file.close()
    assert path.read_bytes() == b"12345\n6789\nwhole\n"
    assert file.dropped_bytes == 4 + 5


def test_a_directory_that_cannot_be_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = RotatingFile(str(tmp_path / "file" / "model.log"))
    file.write(b"lost\n")
    assert file.dropped_bytes == 5 and file.error


# ------------------------------------------------------------------------------- capture


class Pipe:
    """A child's pipe without the child."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)

    def write(self, data: bytes) -> None:
        assert os.write(self.write_fd, data) == len(data)

    def end(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end()


def test_a_line_goes_everywhere_and_no_secret_with_it(pipe: Pipe, tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "model.log"))
    matches: list[tuple[str, str, str]] = []
    echoed: list[str] = []
    capture = Capture(
        pipe.read_fd,
        file=file,
        patterns=[("error", "Traceback"), ("ready", "complete"), ("ready", "***")],
        on_match=lambda *match: matches.append(match),
        mask=lambda text: text.replace("hush", "***"),
        echo=echoed.append,
    )
    pipe.write("löading hush\nstartup complete.\nTraceback\n".encode() + b"bad \xff byte\nno end")
    assert capture.on_readable()
    pipe.end()
    assert not capture.on_readable()
    assert not capture.on_readable()
    capture.close()
    capture.close()
    file.close()
    lines = ["löading ***", "startup complete.", "Traceback", "bad \ufffd byte", "no end"]
    assert capture.ring.since(0) == (lines, 5)
    assert echoed == lines
    assert (tmp_path / "model.log").read_text().splitlines() == lines
    assert matches == [
        ("ready", "***", "löading ***"),
        ("ready", "complete", "startup complete."),
        ("error", "Traceback", "Traceback"),
    ]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read_fd)


def test_one_wake_up_reads_a_bounded_piece_of_a_flood(pipe: Pipe) -> None:
    """The writer always finds room again; the loop never reads for ever; nothing piles up."""
    total, ended = 20 << 20, threading.Event()

    def flood() -> None:
        left = total
        while left:
            left -= os.write(pipe.write_fd, b"x" * min(left, 1 << 16))
        pipe.end()
        ended.set()

    writer = threading.Thread(target=flood)
    writer.start()
    capture = Capture(pipe.read_fd)
    reads: list[int] = []
    feed = capture.feed

    def counted(data: bytes) -> None:
        reads.append(len(data))
        feed(data)

    capture.feed = counted  # type: ignore[method-assign]
    while True:
        before = len(reads)
        more = capture.on_readable()
        assert len(reads) - before <= logs.READS_AT_ONCE
        if not more:
            break
    writer.join()
    capture.close()
    assert ended.is_set() and sum(reads) == total
    assert max(reads) <= logs.READ_BYTES
    assert capture.splitter.dropped_bytes == total - logs.MAX_LINE_BYTES
    (line,), _ = capture.ring.since(0)
    assert len(line) == logs.MAX_LINE_BYTES


@pytest.mark.parametrize("inside", [1, 20, 63])
def test_a_secret_that_a_long_line_is_cut_in_leaves_nothing_of_it(
    pipe: Pipe, inside: int, tmp_path: Path
) -> None:
    secret = "t0ken" + "-k3y" * 15
    file = RotatingFile(str(tmp_path / "log"))
    mask = log_lines.masker([secret])
    capture = Capture(pipe.read_fd, mask=mask, file=file)
    head = "x" * (logs.MAX_LINE_BYTES - inside)
    pipe.write(f"{head}{secret} and more\nnext\n".encode())
    capture.close()
    file.close()
    lines = capture.ring.since(0)[0]
    assert lines == (tmp_path / "log").read_text().splitlines()
    assert lines == [(head + "*** and more")[: logs.MAX_LINE_BYTES], "next"]
    assert capture.splitter.dropped_bytes == len(secret) - inside + len(" and more")


@pytest.mark.parametrize("shift", range(0, 64, 7))
def test_many_secrets_in_a_line_without_end_leave_nothing_of_the_last(
    pipe: Pipe, shift: int
) -> None:
    secret = "t0ken" + "-k3y" * 15
    capture = Capture(pipe.read_fd, mask=log_lines.masker([secret]))
    pipe.write(b"x" * shift + secret.encode() * 500)
    capture.close()
    (line,), _ = capture.ring.since(0)
    assert set(line.replace("***", "")) <= {"x"} and line.count("***") > 200


def test_close_takes_what_is_left_while_a_grandchild_holds_the_pipe(pipe: Pipe) -> None:
    capture = Capture(pipe.read_fd)
    pipe.write(b"last words\n")
    capture.close()
    assert capture.closed
    assert not os.path.exists(f"/proc/self/fd/{pipe.read_fd}")
    assert capture.ring.since(0)[0] == ["last words"]
    assert not capture.on_readable() or capture.closed


# ---------------------------------------------------------------------------------- tail


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Callable[..., Tail]]:
    made: list[Tail] = []

    def make(name: str = "model.log", *, from_start: bool = False) -> Tail:
        made.append(Tail(str(tmp_path / name), from_start=from_start))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lines_of(tail: Tail) -> list[str]:
    while tail.poll():
        pass
    return tail.ring.since(0)[0]


def test_tail_starts_where_it_is_told(tmp_path: Path, tail: Callable[..., Tail]) -> None:
    path = tmp_path / "model.log"
    path.write_text("old\n")
    new, old = tail(), tail(from_start=True)
    assert (lines_of(new), lines_of(old)) == ([], ["old"])
    with path.open("a") as file:
        file.write("new\n")
    assert (lines_of(new), lines_of(old)) == (["new"], ["old", "new"])


def test_tail_reads_a_file_that_appears_later_from_its_start(
    tmp_path: Path, tail: Callable[..., Tail]
) -> None:
    late = tail()
    assert lines_of(late) == []
    (tmp_path / "model.log").write_text("first\n")
    assert lines_of(late) == ["first"]


def test_tail_survives_truncation(tmp_path: Path, tail: Callable[..., Tail]) -> None:
    path = tmp_path / "model.log"
    path.write_text("a long first line\nhalf")
    follower = tail(from_start=True)
    assert lines_of(follower) == ["a long first line"]
    path.write_text("new\n")  # truncates in place
    assert lines_of(follower) == ["a long first line", "half"]
    assert lines_of(follower) == ["a long first line", "half", "new"]


def test_tail_survives_rotation(tmp_path: Path, tail: Callable[..., Tail]) -> None:
    path = tmp_path / "model.log"
    path.write_text("one\n")
    follower = tail(from_start=True)
    assert lines_of(follower) == ["one"]
    with path.open("a") as writer:
        path.rename(tmp_path / "model.log.1")
        assert lines_of(follower) == ["one"]
        path.write_text("three\n")
        assert lines_of(follower) == ["one"]
        writer.write("two\n")  # its writer had not heard of the rotation yet
    for _ in range(3):
        lines_of(follower)
    assert lines_of(follower) == ["one", "two", "three"]


def test_tail_reads_a_bounded_piece_at_once(tmp_path: Path, tail: Callable[..., Tail]) -> None:
    (tmp_path / "model.log").write_bytes(b"0123456\n" * 50_000)
    follower = tail(from_start=True)
    assert follower.poll()
    assert follower.ring.since(0)[1] == logs.READS_AT_ONCE * logs.READ_BYTES // 8
    lines_of(follower)
    assert follower.ring.since(0)[1] == 50_000


def test_tail_of_something_else_says_so(tmp_path: Path, tail: Callable[..., Tail]) -> None:
    (tmp_path / "directory").mkdir()
    follower = tail("directory")
    assert lines_of(follower) == []
    assert "Is a directory" in follower.error
    (tmp_path / "directory").rmdir()
    (tmp_path / "directory").write_text("line\n")
    assert lines_of(follower) == ["line"]
    assert follower.error == ""


# ------------------------------------------------------------------------------- console


def test_the_console_writes_lines_in_order(pipe: Pipe) -> None:
    console = Console(pipe.write_fd)
    for number in range(100):
        console.write(f"line {number}\n" if number % 2 else f"line {number}")
    console.flush()
    assert console.close(deadline_s=30)
    assert os.read(pipe.read_fd, 1 << 16).decode().splitlines() == [
        f"line {number}" for number in range(100)
    ]
    console.write("too late")
    assert console.dropped_lines == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_a_console_that_nobody_reads_blocks_nobody(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe.write_fd, blocking)
    console = Console(pipe.write_fd, max_bytes=200_000)
    line = "x" * 999
    for _ in range(1000):
        console.write(line)
    lost = console.dropped_lines
    assert lost >= 700  # 200 held, and 64 in the pipe
    assert not console.close(deadline_s=0.01)
    received = b""

    def all_read() -> bool:
        nonlocal received
        try:
            received += os.read(pipe.read_fd, 1 << 16)
        except BlockingIOError:
            pass
        return console.close(deadline_s=0.001)

    wait_until(all_read, what="the console's end")
    while True:
        try:
            received += os.read(pipe.read_fd, 1 << 16)
        except BlockingIOError:
            break
    texts = received.decode().splitlines()
    assert texts.count(line) == 1000 - lost
    told = [int(text[1:].split()[0]) for text in texts if "dropped: too slow" in text]
    assert sum(told) == lost


def test_a_console_whose_reader_is_gone(pipe: Pipe) -> None:
    os.close(pipe.read_fd)
    console = Console(pipe.write_fd)
    console.write("nobody hears this")
    wait_until(lambda: console.dropped_lines == 1, what="the drop to be counted")
    assert console.close(deadline_s=30)


def test_a_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "logs" / "a.log"
    file = RotatingFile(str(path))
    file.write(b"one\n")
    shutil.rmtree(path.parents[1])
    file.write(b"two\n")
    file.close()
    made = (path.parent, path.parents[1])  # whatever client texts it gets, nobody else reads them
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700, 0o700]
    assert path.read_bytes() == b"two\n"
    assert (file.dropped_bytes, file.error) == (0, "")


def test_a_rotation_without_room_for_a_new_file_moves_the_old_ones_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = RotatingFile(str(path), max_bytes=4)
    for line in (b"one\n", b"two\n"):
        file.write(line)
    file.close()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
        for _ in range(3):
            file.write(b"lost\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert file.dropped_bytes == 15 and "Too many open files" in file.error
    file.write(b"new\n")
    file.close()
    kept = [tmp_path / name for name in ("a.log", "a.log.1", "a.log.2")]
    assert [one.read_bytes() for one in kept] == [b"new\n", b"two\n", b"one\n"]
