"""Processes: start one in a session of its own, hear how it ended, leave nothing of it behind.

Law: no exit is ever lost or mistaken. Every process is held by its pidfd from birth to reaping, is
signalled through it, and is reaped by name (``waitid`` on that pidfd, never ``waitpid(-1)``), so a
reused pid can neither be signalled nor waited for. The tree below it is found by three marks that a
daemon does not shake off together: its session, two variables in its environment, its parents.

It must not know what the processes do, when they are to be restarted, or which loop waits.
Linux 5.4 or newer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from supervisor.process_scan import (
    CHILD_VARIABLE,
    RUN_VARIABLE,
    find,
    find_run,
    oom_kills,
    port_holder,
    processes,
)

__all__ = [
    "Exit",
    "Process",
    "SpawnError",
    "become_subreaper",
    "find_run",
    "port_holder",
    "reap_orphans",
    "spawn",
    "sweep",
    "sweep_once",
    "watch_parent",
]

#: Bytes of output that a child may be ahead of its reader, where the system grants it.
PIPE_BYTES = 1 << 20

#: Orphans reaped by one call of ``reap_orphans``.
REAP_AT_ONCE = 256

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_SWEEP_PAUSE_S = 0.01


class SpawnError(Exception):
    """A process could not be started; the text says why and what to do.

    ``permanent``: trying again cannot help until somebody changes something.
    """

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: by an exit code, or by a signal."""

    pid: int
    code: int | None = None
    signal: int | None = None
    #: it failed, and in its time the kernel counted a process of our cgroup as killed for memory
    oom: bool = False
    #: a SIGKILL that we did not send
    foreign: bool = False

    def describe(self) -> str:
        """For people."""
        if self.code is not None:
            meanwhile = "; meanwhile the kernel killed a process here for memory (out of memory)"
            return f"exit {self.code}" + (meanwhile if self.oom else "")
        if self.signal is None:
            return "ended, and something else took its exit status"
        if self.oom:
            return "killed by the kernel for memory (out of memory)"
        try:
            name = f"{self.signal} ({signal.Signals(self.signal).name})"
        except ValueError:
            name = str(self.signal)
        if self.foreign:
            return f"killed by signal {name}, not by this worker: perhaps out of memory"
        return f"killed by signal {name}"


class Process:
    """One process that we started. ``spawn`` makes it.

    The caller waits for ``pidfd`` to become readable, stops watching it and calls ``reap``.
    ``output_fd`` (stdout and stderr, non-blocking) belongs to whoever reads it, who closes it.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], pidfd: int, output_fd: int, run_id: str, name: str
    ) -> None:
        self.pid = popen.pid
        self.pidfd = pidfd
        self.output_fd = output_fd
        self.name = name
        #: signals that we sent to it
        self.signalled: set[int] = set()
        #: how it ended; None while it lives
        self.exit: Exit | None = None
        self._popen = popen
        self._run_id = run_id
        self._oom_kills = oom_kills()

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone already."""
        if self.exit is not None:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        self.signalled.add(number)
        return True

    def kill_tree(self) -> None:
        """SIGKILL to it and all that it started; what is forked meanwhile is left to ``sweep``."""
        self.signal(signal.SIGKILL)
        sweep_once(self._run_id, name=self.name, sids=(self.pid,))

    def reap(self) -> Exit:
        """Take the exit status and close ``pidfd``. Raises BlockingIOError while it lives."""
        if self.exit is not None:
            return self.exit
        try:
            status = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self.exit = Exit(self.pid)
            self._popen.returncode = 0
        else:
            if status is None:
                raise BlockingIOError(errno.EAGAIN, f"process {self.pid} still runs")
            self.exit = self._judge(status)
            # Popen would otherwise wait for the pid by itself, one day, whoever has it then.
            self._popen.returncode = status.si_status
        os.close(self.pidfd)
        return self.exit

    def _judge(self, status: os.waitid_result) -> Exit:
        number = status.si_status
        counted = oom_kills()
        oom = None not in (counted, self._oom_kills) and counted != self._oom_kills
        if status.si_code == os.CLD_EXITED:  # what was killed may have been a child of it
            return Exit(self.pid, code=number, oom=oom and number != 0)
        foreign = number == signal.SIGKILL and number not in self.signalled
        return Exit(self.pid, signal=number, oom=oom and foreign, foreign=foreign)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    run_id: str,
    name: str,
    fds: Sequence[int] = (),
) -> Process:
    """Start ``argv`` in a session of its own.

    It gets ``env`` plus our marks, no stdin, one pipe for stdout and stderr, of other descriptors
    ``fds`` alone, and default signal handlers. Raises SpawnError.
    """
    # SPT_NOENV: setproctitle (vLLM uses it) otherwise writes the title over the environment that
    # /proc shows, and our marks with it (documented by setproctitle).
    marked = {"SPT_NOENV": "1", **env, RUN_VARIABLE: run_id, CHILD_VARIABLE: name}
    output_fd, child_end = _pipe()
    try:
        with _default_signals():
            popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=child_end,
                stderr=child_end,
                env=marked,
                cwd=cwd or None,
                start_new_session=True,
                pass_fds=fds,
            )
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise
    except (OSError, ValueError, IndexError) as error:
        os.close(output_fd)
        raise _spawn_error(argv, marked, cwd, error) from error
    finally:
        os.close(child_end)
    return Process(popen, pidfd, output_fd, run_id, name)


def _pipe() -> tuple[int, int]:
    try:
        output_fd, child_end = os.pipe()
    except OSError as error:
        raise SpawnError(f"no pipe for its output: {error.strerror}", False) from error
    os.set_blocking(output_fd, False)
    with contextlib.suppress(OSError):  # the user's share of pipe memory is spent: a small pipe
        fcntl.fcntl(output_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return output_fd, child_end


def _spawn_error(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, error: Exception
) -> SpawnError:
    command = argv[0] if argv else ""
    if cwd and not os.access(cwd, os.X_OK):
        return SpawnError(f"cannot enter its directory: {cwd}; does it exist?", True)
    if isinstance(error, FileNotFoundError):
        if shutil.which(command, path=env.get("PATH")):
            return SpawnError(f"{command}: its interpreter (the #! line) does not exist", True)
        return SpawnError(f"command not found: {command!r}; is it installed and on PATH?", True)
    if isinstance(error, PermissionError):
        return SpawnError(f"not allowed to execute {command!r}; is it executable?", True)
    if isinstance(error, OSError):
        permanent = error.errno in (errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.ELOOP)
        return SpawnError(f"cannot start {command!r}: {error.strerror}", permanent)
    return SpawnError(f"cannot start {command!r}: {error}", True)


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """What is started inside begins with default handlers and nothing blocked.

    An exec resets handlers to the default but keeps what is ignored (nohup, a background job), so
    what we ignore gets a handler for a moment. Handlers can be set in the main thread only.
    """
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ignored: list[int] = []
    if threading.current_thread() is threading.main_thread():
        ignored = [n for n in _CATCHABLE if signal.getsignal(n) == signal.SIG_IGN]
    try:
        for number in ignored:
            signal.signal(number, lambda _number, _frame: None)
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


#: Popen itself restores SIGPIPE and SIGXFSZ, which Python ignores.
_CATCHABLE = signal.valid_signals() - {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGPIPE,
    signal.SIGXFSZ,
}


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {argument}): {os.strerror(number)}")


def reap_orphans(known_pids: Collection[int]) -> int:
    """Reap dead children that we did not start, at most ``REAP_AT_ONCE``; returns how many.

    ``known_pids``: processes that somebody here waits for; they are left alone.
    """
    reaped = 0
    for pid in _children():
        if pid not in known_pids:
            with contextlib.suppress(ChildProcessError):
                reaped += os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
        if reaped == REAP_AT_ONCE:
            break
    return reaped


def _children() -> list[int]:
    """Our children, dead ones included."""
    try:
        pids: list[int] = []
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                pids += map(int, file.read().split())
        return pids
    except OSError:  # a thread ended meanwhile, or a kernel without CONFIG_PROC_CHILDREN
        return [seen.pid for seen in processes() if seen.parent == os.getpid()]


def watch_parent(expected_pid: int) -> int | None:
    """A pidfd that becomes readable when our parent dies; None: it is dead already.

    Should we be stopped (SIGSTOP) at that moment, the kernel lets us go on, so that we can see it.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    try:
        pidfd = os.pidfd_open(expected_pid)
    except ProcessLookupError:
        return None
    # Asked after opening: were it another process by that number, our parent would be another.
    if os.getppid() != expected_pid:
        os.close(pidfd)
        return None
    return pidfd


def sweep_once(
    run_id: str,
    name: str | None = None,
    sids: Collection[int] = (),
    exclude: Collection[int] | None = None,
) -> int:
    """SIGKILL to every process that ``find_run`` finds; returns how many: 0 means all gone.

    Whole process groups are killed at once: no fork can slip through that.
    """
    found = find(run_id, name, sids, exclude)
    ours = _groups([0, *(exclude or ())]) | {0}  # 0: it is none of this namespace's
    for group in {seen.group for seen in found} - ours:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for seen in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(seen.pid, signal.SIGKILL)
    return len(found)


def sweep(
    run_id: str,
    name: str | None = None,
    sids: Collection[int] = (),
    exclude: Collection[int] | None = None,
    deadline_s: float = 2.0,
) -> int:
    """``sweep_once`` until nothing is left or ``deadline_s`` has passed; returns what is left.

    Blocks: for the last moments of a process, not for its loop.
    """
    end = time.monotonic() + deadline_s
    while (left := sweep_once(run_id, name, sids, exclude)) and time.monotonic() < end:
        time.sleep(_SWEEP_PAUSE_S)
    return left


def _groups(pids: Collection[int]) -> set[int]:
    """Process groups of these; 0 is ourselves."""
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    return groups
