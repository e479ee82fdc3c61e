"""What /proc says: who lives, who belongs to a run, who holds a port, who was killed for memory.

It only looks. Every answer is a moment's, and a process that may not be looked at (another user's)
is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator

import msgspec

#: Marks of our processes in their environment.
RUN_VARIABLE = "LIGHTERMAN_RUN"
CHILD_VARIABLE = "LIGHTERMAN_CHILD"


#: Looks at /proc within one scan, while processes keep appearing; and while there are some among
#: them that had ended before it could be seen whose they were.
_LOOKS, _MORE_LOOKS = 5, 100


class Seen(msgspec.Struct, frozen=True):
    """One process of ``processes``."""

    pid: int
    alive: bool  #: it runs, or is about to end; False: only its exit status is left
    parent: int
    session: int
    group: int = 0


def processes(suspect: Callable[[Seen], bool] = lambda _: False) -> list[Seen]:
    """Every process. ``suspect`` is asked about each at once, and may want some more looks.

    What forks and exits faster than we look is always one process ahead of us. So we look again
    for those that appeared meanwhile, and call them alive even when they have ended by now: what
    they forked may live.
    """
    seen: dict[int, Seen] = {}
    doubtful = False
    for look in range(_MORE_LOOKS):
        if look >= _LOOKS and not doubtful:
            break
        appeared = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - seen.keys()
        if not appeared:
            break
        doubtful = False
        for pid in sorted(appeared, reverse=True):  # the newest will be the first to be gone
            process = _look(pid, late=look > 0)
            if process is not None:
                seen[pid] = process
                doubtful |= suspect(process)
    return list(seen.values())


def _look(pid: int, late: bool) -> Seen | None:
    """One process, None when it is gone. Source of the fields: proc(5), /proc/pid/stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may hold anything, parentheses and newlines included: cut behind it.
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    # The first thread may be a zombie while others still hold the port or the GPU.
    alive = late or fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return Seen(pid, alive, int(fields[1]), int(fields[3]), int(fields[2]))


def is_stopped(pid: int) -> bool:
    """A signal has stopped it (SIGSTOP): none of its threads runs, whatever it was about to do."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] == b"T"
    except OSError:
        return False


def find_run(
    run_id: str,
    name: str | None = None,
    sids: Collection[int] = (),
    exclude: Collection[int] | None = None,
) -> list[int]:
    """Living processes of a run, by pid: see ``find``."""
    return sorted(seen.pid for seen in find(run_id, name, sids, exclude))


def find(
    run_id: str,
    name: str | None = None,
    sids: Collection[int] = (),
    exclude: Collection[int] | None = None,
) -> list[Seen]:
    """Living processes of a run.

    Args:
        run_id: they carry it in their environment.
        name: only this child's processes; None: all of the run.
        sids: members of these sessions count too.
        exclude: pids that do not count; None: this process.

    Their descendants count as well, whatever they did to their environment; and so do the sessions
    that they made, whose members may end before anybody can read theirs.
    """
    excluded = {os.getpid()} if exclude is None else set(exclude)
    marks = {f"{RUN_VARIABLE}={run_id}".encode()}
    if name is not None:
        marks.add(f"{CHILD_VARIABLE}={name}".encode())
    marked: set[int] = set()
    sessions = set(sids)

    def suspect(seen: Seen) -> bool:
        """Note whose it is while it lives. True: it has ended already, and may be one of them."""
        if not seen.alive or seen.pid in excluded:
            return False
        environment = _environment(seen.pid)
        if marks <= environment:
            marked.add(seen.pid)
            sessions.add(seen.session)
        # what has ended shows an empty one; whose child it was may not be seen any more, either
        return environment <= {b""} and seen.session not in sessions

    living = {
        seen.pid: seen for seen in processes(suspect) if seen.alive and seen.pid not in excluded
    }
    sessions -= {os.getsid(0)} - set(sids)  # not what merely runs beside us
    found = {pid for pid, seen in living.items() if pid in marked or seen.session in sessions}
    grown = found
    while grown:
        grown = {pid for pid, seen in living.items() if seen.parent in grown} - found
        found |= grown
    return [living[pid] for pid in found]


def _environment(pid: int) -> set[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return set(file.read().split(b"\0"))
    except OSError:  # gone meanwhile, or another user's
        return set()


def oom_kills() -> int | None:
    """Processes of our cgroup that the kernel killed for memory so far; None: it does not say.

    Source: ``oom_kill`` in memory.events (cgroup v2) or memory.oom_control (v1); a container sees
    its own group either at the path of /proc/self/cgroup or at the root of the mount.
    """
    for path in _oom_counters():
        try:
            with open(path) as file:
                counts = dict(line.split() for line in file)
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _oom_counters() -> Iterator[str]:
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, group in groups:
        if controllers == "":
            root, leaf = "/sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            root, leaf = "/sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        yield f"{root}{group.rstrip('/')}/{leaf}"
        yield f"{root}/{leaf}"


def port_holder(port: int) -> str | None:
    """Who listens on this TCP port, for error texts; None: nobody."""
    import psutil  # mostly nobody asks

    try:
        listening = [
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
        ]
    except (psutil.Error, OSError):
        return None
    if not listening:
        return None
    pid = next((pid for pid in listening if pid), None)
    if pid is None:
        return "a process of another user"
    try:
        name = psutil.Process(pid).name().encode("utf-8", "replace").decode()
        return f"{name} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
