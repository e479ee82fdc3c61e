"""Real processes: how they end is told right, and nothing of them is left."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor import process_scan, process_tree
from supervisor.process_tree import Exit, SpawnError
from tests.kit.spawned import ROOT, Run, alive, processes, reap
from tests.kit.wait import DEADLINE_S, wait_until


@pytest.fixture
def run() -> Iterator[Run]:
    with processes() as run:
        yield run


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> None:
    """Orphans come to us, as they come to the supervisor."""
    process_tree.become_subreaper()


# --------------------------------------------------------------------------------- exits


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes(run: Run, code: int) -> None:
    process = run.misbehave("exit", str(code))
    ended = reap(process)
    assert ended == Exit(process.pid, code=code)
    assert ended.describe() == f"exit {code}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV])
def test_death_by_a_signal(run: Run, number: signal.Signals) -> None:
    ended = reap(run.misbehave("kill_self", str(int(number))))
    assert ended.describe() == f"killed by signal {int(number)} ({number.name})"


def test_a_signal_without_a_name(run: Run) -> None:
    ended = reap(run.misbehave("kill_self", str(signal.SIGRTMIN + 1)))
    assert ended.describe() == f"killed by signal {signal.SIGRTMIN + 1}"


def test_our_own_kill_is_not_blamed_on_memory(run: Run) -> None:
    process = run.misbehave("sleep")
    assert process.signal(signal.SIGKILL)
    assert reap(process).describe() == "killed by signal 9 (SIGKILL)"


def test_a_kill_counted_by_the_cgroup_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5] * 4)
    monkeypatch.setattr(process_tree, "oom_kills", lambda: next(counts))
    process = run.misbehave("sleep")
    os.kill(process.pid, signal.SIGKILL)
    assert reap(process).describe() == "killed by the kernel for memory (out of memory)"
    process = run.misbehave("sleep")
    process.signal(signal.SIGKILL)
    assert reap(process).describe() == "killed by signal 9 (SIGKILL)"
    # a child of it may have been killed
    said = "exit 1; meanwhile the kernel killed a process here for memory (out of memory)"
    assert reap(run.misbehave("exit", "1")).describe() == said
    assert reap(run.misbehave("exit", "0")).describe() == "exit 0"


def test_a_stolen_exit_status_is_survived(run: Run) -> None:
    process = run.misbehave("exit", "3")
    os.waitpid(process.pid, 0)
    assert not process.signal(signal.SIGTERM)
    assert process.reap().describe() == "ended, and something else took its exit status"


def test_reaping_too_early_says_so(run: Run) -> None:
    process = run.misbehave("sleep")
    with pytest.raises(BlockingIOError, match="still runs"):
        process.reap()


def test_after_the_end_signals_reach_nobody(run: Run) -> None:
    process = run.misbehave("exit", "0")
    ended = reap(process)
    assert process.reap() is ended
    assert not process.signal(signal.SIGTERM)
    process.kill_tree()


def test_a_process_that_ended_but_is_not_reaped_takes_no_signal_for_the_cause(run: Run) -> None:
    process = run.misbehave("exit", "3")
    select.select([process.pidfd], [], [], DEADLINE_S)
    process.signal(signal.SIGKILL)
    assert process.reap().describe() == "exit 3"


# --------------------------------------------------------------------------------- spawn


def test_the_child_starts_clean(run: Run) -> None:
    """No descriptor but its three, nothing ignored or blocked, a session of its own."""
    inherited = [os.dup(0) for _ in range(3)]
    for fd in inherited:
        os.set_inheritable(fd, True)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        process = run.misbehave("show")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, before)
        for fd in inherited:
            os.close(fd)
    assert reap(process).code == 0
    shown = dict(line.split(maxsplit=1) for line in run.read(process).splitlines())
    pythons_own = sum(1 << (n - 1) for n in (signal.SIGPIPE, signal.SIGXFSZ))
    assert shown == {"fds": "0 1 2", "SigBlk": "0", "SigIgn": str(pythons_own), "leads": "True"}


def test_the_marks_survive_what_setproctitle_does(run: Run) -> None:
    process = run.misbehave("sleep", name="model")
    run.said(process, "ready")
    environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    assert b"SPT_NOENV=1" in environment
    assert f"LIGHTERMAN_RUN={run.id}".encode() in environment
    assert b"LIGHTERMAN_CHILD=model" in environment


def _not_executable(directory: Path) -> list[str]:
    path = directory / "plain.txt"
    path.write_text("text")
    return [str(path)]


def _no_interpreter(directory: Path) -> list[str]:
    path = directory / "script"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    return [str(path)]


def _garbage(directory: Path) -> list[str]:
    path = directory / "garbage"
    path.write_bytes(b"\0\1\2")
    path.chmod(0o755)
    return [str(path)]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (lambda _: ["no-such-command-here"], "command not found: 'no-such-command-here'"),
        (lambda _: ["/no/such/path"], "command not found"),
        (lambda _: [], "cannot start ''"),
        (lambda _: ["a\0b"], "null byte"),
        (_not_executable, "is it executable"),
        (_no_interpreter, "interpreter"),
        (_garbage, "Exec format error"),
    ],
)
def test_a_command_that_cannot_work(
    run: Run, tmp_path: Path, command: Callable[[Path], list[str]], text: str
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpawnError, match=text) as caught:
        run.spawn(*command(tmp_path))
    assert caught.value.permanent
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_directory_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match="cannot enter its directory") as caught:
        run.spawn("true", cwd=str(tmp_path / "missing"))
    assert caught.value.permanent


def test_out_of_descriptors_is_not_permanent(run: Run) -> None:
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while len(held) < 100_000:
                held.append(os.dup(0))
        for spare in (0, 2):  # not even a pipe; a pipe, but no pidfd
            for fd in [held.pop() for _ in range(spare)]:
                os.close(fd)
            with pytest.raises(SpawnError) as caught:
                run.spawn(sys.executable, "-c", "pass")
            assert not caught.value.permanent
    finally:
        for fd in held:
            os.close(fd)


def test_a_child_that_cannot_be_held_by_its_pidfd_is_not_left_behind(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, f"too many open files for {pid}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", refuse)
        with pytest.raises(SpawnError, match="too many open files"):
            run.misbehave("sleep")
    assert process_tree.find_run(run.id) == []


def test_spawning_from_another_thread(run: Run) -> None:
    """Handlers can be set in the main thread only; the rest is the same."""
    ended: list[Exit] = []
    thread = threading.Thread(target=lambda: ended.append(reap(run.misbehave("exit", "3"))))
    thread.start()
    thread.join()
    assert [one.code for one in ended] == [3]


# --------------------------------------------------------------------------------- sweep


def test_a_tree_that_ignores_sigterm_is_swept(run: Run) -> None:
    process = run.misbehave("ignore_term")
    run.said(process, "ready")
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGINT)
    assert process_tree.find_run(run.id) == [process.pid]
    assert process_tree.sweep(run.id, deadline_s=DEADLINE_S) == 0
    assert reap(process).signal == signal.SIGKILL


def test_a_daemon_in_its_own_session_is_swept(run: Run) -> None:
    process = run.misbehave("double_fork_daemon", name="model")
    pid = int(run.said(process, "pid ").split()[1])
    assert reap(process).code == 0
    assert process_tree.find_run(run.id, "model") == [pid]
    assert process_tree.find_run(run.id, "another child") == []
    assert process_tree.find_run(run.id, exclude=[pid]) == []
    assert process_tree.find_run("another run") == []
    wait_until(lambda: not process_tree.sweep_once(run.id, "model"), what="the daemon's end")
    wait_until(lambda: process_tree.reap_orphans(()) or not alive(pid), what="its reaping")
    assert not alive(pid)


def test_a_process_that_hid_its_environment_is_found_by_session_and_parents(run: Run) -> None:
    """A cleared environment hides the marks; a session of its own hides the session as well."""
    script = (
        "import os, signal\n"
        "signal.alarm(300)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.execve('/bin/sleep', ['sleep', '300'], {})\n"
        "os.write(1, b'forked\\n')\n"
        "signal.pause()\n"
    )
    process = run.spawn(sys.executable, "-c", script)
    run.said(process, "forked")
    assert len(process_tree.find_run(run.id)) == 2
    cleared = run.spawn("env", "-i", sys.executable, "-c", "import signal; signal.pause()")
    wait_until(lambda: process_scan._environment(cleared.pid) == {b""}, what="the cleared env")
    assert cleared.pid not in process_tree.find_run(run.id)
    assert cleared.pid in process_tree.find_run(run.id, sids=[cleared.pid])


def test_kill_tree_ends_a_whole_tree(run: Run) -> None:
    process = run.misbehave("fork_tree", "3", "3")
    wait_until(lambda: run.read(process).count("pid ") == 40, what="40 processes")
    process.kill_tree()
    assert reap(process).signal == signal.SIGKILL
    wait_until(
        lambda: not process_tree.sweep_once(run.id, sids=[process.pid]), what="the tree's end"
    )


def test_the_sweeper_spares_itself_and_its_group(run: Run) -> None:
    """A child of ours sweeps its own run, as it does when the supervisor was killed."""
    sibling = run.misbehave("sleep", name="sibling")
    run.said(sibling, "ready")
    script = (
        "import os, sys\n"
        "from supervisor import process_tree\n"
        f"left = process_tree.sweep({run.id!r}, exclude=(os.getpid(),), deadline_s=20)\n"
        "sys.exit(40 + left)\n"
    )
    sweeper = run.spawn(sys.executable, "-c", script)
    assert reap(sweeper).describe() == "exit 40"
    assert reap(sibling).foreign


# ------------------------------------------------------------------------------- orphans


def test_orphans_are_found_without_the_children_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refuse_own_tasks(path: str) -> list[str]:
        if path == "/proc/self/task":
            raise FileNotFoundError(path)
        return listdir(path)

    process = run.misbehave("sleep")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse_own_tasks)
        assert process.pid in process_tree._children()


# -------------------------------------------------------------------------------- others


def test_the_holder_of_a_port_is_named(run: Run) -> None:
    process = run.misbehave("listen")
    port = int(run.said(process, "port ").split()[1])
    assert f"(pid {process.pid})" in str(process_tree.port_holder(port))
    process.kill_tree()
    reap(process)
    assert process_tree.port_holder(port) is None


def test_a_child_watches_its_parent() -> None:
    script = (
        "import os, select\n"
        "from supervisor import process_tree\n"
        "pidfd = process_tree.watch_parent(os.getppid())\n"
        "os.write(1, b'%d watching\\n' % os.getpid())\n"
        "ready, _, _ = select.select([pidfd], [], [], 60)\n"
        "os.write(1, b'parent died\\n' if ready else b'nothing\\n')\n"
    )
    runner = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}])"
    parent = subprocess.Popen([sys.executable, "-c", runner], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = int(parent.stdout.readline().split()[0])
        parent.kill()
        assert parent.stdout.readline() == b"parent died\n"
    wait_until(lambda: process_tree.reap_orphans(()) or not alive(child), what="the child's end")


def test_a_parent_that_is_dead_already_is_noticed() -> None:
    assert process_tree.watch_parent(os.getpid()) is None  # alive, but nobody's parent here
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert process_tree.watch_parent(dead.pid) is None
    pidfd = process_tree.watch_parent(os.getppid())
    assert pidfd is not None
    os.close(pidfd)


def test_oom_counters_of_both_cgroup_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    v2, v1 = tmp_path / "memory.events", tmp_path / "memory.oom_control"
    v2.write_text("low 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n")
    v1.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    for paths, expected in (
        ([str(v2)], 2),
        ([str(tmp_path / "missing"), str(v1)], 7),
        ([str(tmp_path / "missing")], None),
    ):
        monkeypatch.setattr(process_scan, "_oom_counters", lambda paths=paths: iter(paths))
        assert process_scan.oom_kills() == expected
