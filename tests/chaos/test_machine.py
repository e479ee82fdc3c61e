"""The machine lets the worker down: a full disk, removed files, no descriptors, signals, time."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from reporter.records import Marks
from supervisor.exit_codes import ExitCode
from supervisor.run_lock import read_running
from tests.chaos.table import row
from tests.kit.kept_client import Client, Clients
from tests.kit.load import Load
from tests.kit.removal import remove
from tests.kit.running_worker import ANY_PORT, command, environment
from tests.kit.shifted_clock import ShiftedClock
from tests.kit.small_disk import small_disk
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, post_json, running

SHORT: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 5}}


#: A row's times, in their order.
TIMES = ("entered_queue_at", "work_started_at", "work_completed_at")


def serve(worker: Worker, auth: dict[str, Any], count: int) -> Counter[str]:
    """So many requests at once; how they ended."""

    async def scene() -> Counter[str]:
        async with Load(worker.url, auth) as load:
            for _ in range(count):
                load.start("/generate", SHORT)
            return await load.outcomes()

    return asyncio.run(scene())


def told_work(worker: Worker) -> float:
    """Workload that the engine was told of as served."""
    return float(sum(report["cur_perf"] for report in worker.record()["status"]))


def until_told(worker: Worker, requests: int) -> None:
    """The engine knows of every request, and of its work to the unit."""

    def rows() -> int:
        """Sessions have a row, too, which is no success where the adapter died."""
        return sum(ended["status"] == "Success" for ended in worker.record()["requests"])

    wait_until(lambda: rows() >= requests, what=f"{requests} rows")
    wait_until(lambda: told_work(worker) >= 5.0 * requests, what="all the work")
    assert rows() == requests
    assert told_work(worker) == 5.0 * requests


def session(worker: Worker, auth: dict[str, Any]) -> dict[str, Any]:
    """Open one; what its client needs to ask about it."""
    asked = {"auth_data": auth, "payload": {"lifetime": 600}}
    told = post_json(f"{worker.url}/session/create", asked)
    return {"session_id": told["session_id"], "session_auth": auth}


def is_open(worker: Worker, named: dict[str, Any]) -> bool:
    return bool(post_json(f"{worker.url}/session/health", named).get("ok"))


# ---------------------------------------------------------------------------- row 13


@row(
    13,
    "no room is left on the disk that holds the logs, the state and the run's directory",
    seen="requests are answered; `status` counts, for each member, the bytes of its log that were"
    " dropped, and says why; the log of the worker says it once, and once when there is room again",
    does="keeps the accounts in memory and writes them whole when there is room again; no file is"
    " torn",
)
def test_row_13_a_full_disk_does_not_stop_the_serving(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with small_disk(state, megabytes=6) as disk, TemporaryDirectory(prefix="l-") as short:
        (state / "run").mkdir()
        Path(short, "run").symlink_to(state / "run")  # the path itself is too long for sockets
        environ = {"TMPDIR": f"{short}/run"}
        with running(tmp_path, environ=environ) as worker:
            auth = worker.auth()
            assert serve(worker, auth, 10) == {"ok": 10}
            disk.fill()
            flood = {"kind": "flood_log", "megabytes": 1}
            post_json(f"http://127.0.0.1:{worker.model_port}/demo/fault", flood)
            wait_until(lambda: log_of(worker, "model")[1], what="the log to be refused")
            kept = session(worker, auth)
            assert serve(worker, auth, 20) == {"ok": 20}
            until_told(worker, 30)
            dropped, error = log_of(worker, "model")
            assert dropped > 2**19 and "No space left" in error
            assert worker.members()["reporter"]["gauges"]["store_failures"] > 0
            assert worker.status()["ready"] and is_open(worker, kept)
            refused = "model: its log lines are dropped"
            wait_until(lambda: refused in worker.printed, what="a word about it")
            # what is there is whole, although it could not be written anew
            assert (read_running(str(state)) or {})["run_id"] == worker.run_id

            disk.empty()
            post_json(f"http://127.0.0.1:{worker.model_port}/demo/fault", flood)
            wait_until(lambda: not log_of(worker, "model")[1], what="the log to be written")
            again = "model: its log is written again"
            wait_until(lambda: again in worker.printed, what="a word about it")
            assert (worker.printed.count(refused), worker.printed.count(again)) == (1, 1)
            assert serve(worker, auth, 10) == {"ok": 10}
            wait_until(lambda: stored_run(state) == worker.run_id, 60.0, "the accounts on disk")
            files = Path(worker.facts()["runtime_dir"]) / "sessions"
            wait_until((files / kept["session_id"]).exists, what="the session on disk")
            until_written(state, worker, 40)
            for name in ("reporter", "backend_adapter"):
                old = worker.kill(name)
                worker.wait_replaced(name, old)
            assert is_open(worker, kept)
            until_told(worker, 40)


def log_of(worker: Worker, name: str) -> tuple[int, str]:
    member = worker.members()[name]
    return member["log_dropped_bytes"], member["log_error"]


def until_written(state: Path, worker: Worker, requests: int) -> None:
    """The file, too, knows that the engine knows: who dies now tells nothing twice."""
    until_told(worker, requests)
    connection = sqlite3.connect(f"{(state / 'reports.sqlite').as_uri()}?mode=ro", uri=True)

    def written() -> bool:
        (rows,) = connection.execute("SELECT count(*) FROM rows").fetchone()
        (marks,) = connection.execute("SELECT value FROM facts WHERE name = 'marks'").fetchone()
        return bool(
            rows == 0 and msgspec.msgpack.decode(marks, type=Marks).served >= 5.0 * requests
        )

    try:
        wait_until(written, what="what was told to be written down")
    finally:
        connection.close()


def stored_run(state: Path) -> str:
    """The run whose accounts lie in the file; the file is whole."""
    connection = sqlite3.connect(f"{(state / 'reports.sqlite').as_uri()}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == (0,):
            return ""  # it is being made
        rows = connection.execute("SELECT value FROM facts WHERE name = 'run_id'").fetchall()
        work = connection.execute("SELECT value FROM facts WHERE name = 'marks'").fetchall()
        return str(msgspec.msgpack.decode(rows[0][0])) if rows and work else ""
    finally:
        connection.close()


@row(
    13,
    "the directory of the logs cannot be made",
    seen="the worker starts and is ready; `logs NAME` shows the latest lines; `status` says that"
    " they are not kept, and why",
    does="goes on without the files, and tries again with every line",
)
def test_row_13_logs_that_cannot_be_kept_do_not_keep_it_from_running(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "logs").write_text("not a directory")
    with running(tmp_path) as worker:
        assert worker.status()["ready"]
        dropped, error = log_of(worker, "model")
        assert dropped and ("exists" in error or "directory" in error), error


# ---------------------------------------------------------------------------- row 15


@row(
    15,
    "ingress has no file descriptor left for another client",
    seen="requests on open connections are answered; a new connection gets 503 overloaded with"
    " Retry-After, or is closed at once where there is not even a descriptor for that; afterwards"
    " all is as before",
    does="keeps descriptors back for itself, refuses clients beyond them, and takes new ones as"
    " soon as there are any; other processes are restarted meanwhile as ever",
)
def test_row_15_no_descriptors_left_in_ingress(tmp_path: Path) -> None:
    with running(tmp_path) as worker, Clients() as clients:
        auth = worker.auth()
        body = json.dumps({"auth_data": auth, "payload": SHORT}).encode()
        kept = clients.of(worker.url)
        kept.send("/generate", body)
        assert kept.answer()[0] == 200
        ingress = worker.pid("ingress-0")
        before = resource.prlimit(ingress, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{ingress}/fd")) + 8
        resource.prlimit(ingress, resource.RLIMIT_NOFILE, (few, before[1]))
        wait_until(lambda: is_refused(worker.url), what="it to see that there are few")
        with Clients() as many:
            crowd = [many.of(worker.url) for _ in range(60)]
            seen = Counter(first_word(client) for client in crowd)
            assert set(seen) <= {"overloaded", "closed"} and seen["overloaded"], seen
            kept.send("/generate", body)
            assert kept.answer()[0] == 200
            old = worker.kill("reporter")
            worker.wait_replaced("reporter", old)
        resource.prlimit(ingress, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: serve(worker, auth, 1) == {"ok": 1}, what="new clients to be taken")
        assert serve(worker, auth, 20) == {"ok": 20}
        kept.send("/generate", body)
        assert kept.answer()[0] == 200
        assert worker.members()["ingress-0"]["restarts"] == 0
        wait_until(lambda: worker.status()["ready"], what="ready again")


def is_refused(url: str) -> bool:
    """A new client is told that there is no room for it, or closed; else it hears nothing."""
    with Clients() as short:
        client = short.of(url)
        client.socket.settimeout(0.2)
        try:
            return first_word(client) in ("overloaded", "closed")
        except TimeoutError:
            return False


def first_word(client: Client) -> str:
    """The kind of the error that it is told without having asked, or that it was closed."""
    try:
        return str(json.loads(client.answer()[2])["error"]["kind"])
    except (ConnectionResetError, IndexError):
        return "closed"


@row(
    15,
    "the supervisor has no file descriptor left when a process has to be started",
    seen="requests are answered; the log names the process that could not be started, and why",
    does="tries again with growing pauses; each try counts as a restart, and `restart.budget`"
    " of them are made, as in row 6",
)
def test_row_15_no_descriptors_left_to_start_a_process_with(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        auth, pid = worker.auth(), worker.process.pid
        reporter = worker.pid("reporter")
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        none = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (none, before[1]))
        os.kill(reporter, signal.SIGKILL)
        wait_until(lambda: "Too many open files" in worker.printed, what="it to say so")
        assert serve(worker, auth, 10) == {"ok": 10}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        worker.wait_replaced("reporter", reporter)
        until_told(worker, 10)


@row(
    15,
    "the system grants a process fewer descriptors than model.max_connections",
    seen="requests beyond them wait in the queue, and are answered",
    does="runs no more at once than there are descriptors for; the model server never looks dead"
    " because nobody can connect to it",
)
def test_row_15_fewer_descriptors_than_requests_may_run(tmp_path: Path) -> None:
    pace = ("--tokens-per-second", "20", "--slots", "1000")
    with running(tmp_path, model_flags=pace) as worker:
        auth = worker.auth()
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (230, 230))
        old = worker.kill("backend_adapter")  # the next one inherits that
        worker.wait_replaced("backend_adapter", old)
        wait_until(lambda: worker.status()["ready"], what="ready again")
        assert serve(worker, auth, 300) == {"ok": 300}
        status = worker.status()
        assert status["ready"] and sum(m["restarts"] for m in status["members"]) == 1
        assert "does not answer" not in worker.printed


# ---------------------------------------------------------------------------- row 16


@row(
    16,
    "10,000 signals at the supervisor while its processes die",
    seen="every death is counted once, with its reason; requests are answered",
    does="waits for each process by its pidfd, which no signal can hide; signals that mean nothing"
    " to it (USR1, ALRM, WINCH …) change nothing, not for the programs that it starts either",
)
def test_row_16_ten_thousand_signals_hide_no_exit(tmp_path: Path) -> None:
    stray = (
        signal.SIGCHLD, signal.SIGWINCH, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2,
        signal.SIGURG, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGPIPE,
    )  # fmt: skip
    with running(tmp_path) as worker:
        auth = worker.auth()
        pids = {name: member["pid"] for name, member in worker.members().items()}
        victims = [name for name in pids if name != "engine"]
        for number in range(10_000):
            os.kill(worker.process.pid, stray[number % len(stray)])
            if number % 2_000 == 1_000 and victims:
                os.kill(pids[victims.pop()], signal.SIGKILL)
        assert victims == []
        for name in pids.keys() - {"engine"}:
            worker.wait_replaced(name, pids[name])
        members = worker.members()
        for name in pids.keys() - {"engine"}:
            assert members[name]["restarts"] == 1, members[name]
            assert "signal 9" in members[name]["last_exit"], members[name]
        assert worker.pid("engine") == pids["engine"]
        for name in ("ingress-0", "backend_adapter", "reporter"):
            os.kill(members[name]["pid"], signal.SIGUSR1)
        wait_until(lambda: worker.status()["ready"], what="ready again")
        assert serve(worker, auth, 10) == {"ok": 10}
        assert {name: m["pid"] for name, m in worker.members().items()} == {
            name: m["pid"] for name, m in members.items()
        }
        # a program that it started has the default again
        assert signal.SIGUSR1 not in handled(worker.pid("model"))


def handled(pid: int) -> set[int]:
    """Signals that a process catches or ignores."""
    found = set()
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("SigCgt", "SigIgn"):
            bits = int(value, 16)
            found |= {number + 1 for number in range(64) if bits >> number & 1}
    return found


# ---------------------------------------------------------------------------- row 17


@row(
    17,
    "the wall clock jumps a day ahead, then two days back",
    seen="nothing: requests, an open session and one that runs across the jump go on; the times of"
    " each ended request stay in order",
    does="measures by the monotonic clock alone; the wall clock is only for print and reports",
)
def test_row_17_the_wall_clock_jumps_a_day_either_way(tmp_path: Path) -> None:
    clock, day_s = ShiftedClock(tmp_path), 86_400
    pace = ("--tokens-per-second", "20")
    with running(tmp_path, model_flags=pace, environ=clock.environ) as worker:
        auth = worker.auth()
        kept = session(worker, auth)
        pids = {name: member["pid"] for name, member in worker.members().items()}
        across = {"inputs": "x", "parameters": {"max_new_tokens": 40}}

        async def scene(to_s: int) -> Counter[str]:
            async with Load(worker.url, auth) as load:
                load.start("/generate", across)
                await asyncio.to_thread(wait_until, running_one, 30.0, "it to run")
                clock.jump(to_s)
                for _ in range(3):
                    load.start("/generate", SHORT)
                return await load.outcomes()

        def running_one() -> bool:
            return bool(worker.status()["queue"].get("running"))

        for jumps, to_s in ((1, day_s), (2, -day_s)):
            assert asyncio.run(scene(to_s)) == {"ok": 4}
            # this is about time passing: who misses three heartbeats is killed, and sessions are
            # looked at every 5 s
            time.sleep(5.5 if jumps == 1 else 3.5)
            assert {name: m["pid"] for name, m in worker.members().items()} == pids
            status = worker.status()
            assert status["ready"] and not status["load"]["error"], status
            assert is_open(worker, kept)
            wait_until(lambda n=4 * jumps: len(worker.record()["requests"]) >= n, what="the rows")  # type: ignore[misc]
            told_at = [report["received_at"] for report in worker.record()["status"]]
            assert abs(told_at[-1] - time.time() - to_s) < 60, "the engine's clock jumped, too"
        for ended in worker.record()["requests"]:
            times = [ended[name] for name in TIMES if ended[name]]
            assert times == sorted(times) and times[-1] - times[0] < 60, ended
        assert told_work(worker) == 2 * (40 + 3 * 5.0)
        assert serve(worker, worker.auth(), 5) == {"ok": 5}


# ---------------------------------------------------------------------------- row 18


class Flow:
    """Requests without a pause, in a thread, until it is left; each must be answered well."""

    def __init__(self, worker: Worker, auth: dict[str, Any]) -> None:
        self._url = f"{worker.url}/generate"
        self._body = {"auth_data": auth, "payload": SHORT}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answered = 0
        self.others: list[Any] = []

    def _ask(self) -> None:
        while not self._over.is_set():
            told = post_json(self._url, self._body)
            if "generated_text" in told:
                self.answered += 1
            else:
                self.others.append(told)

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def goes_on(self) -> None:
        """Some more were answered from now on."""
        before = self.answered
        wait_until(lambda: self.answered > before + 3 or self.others, what="answers")
        assert self.others == []


@row(
    18,
    "the socket files between the processes are deleted, one by one; then the run's directory",
    seen="nothing: requests that flow meanwhile are all answered; commands find the worker again"
    " within 5 s",
    does="looks for its files twice a second, binds them anew and leaves connections as they are;"
    " writes settings and sessions again, for processes that start later",
)
def test_row_18_socket_files_are_deleted_while_requests_flow(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        auth = worker.auth()
        kept = session(worker, auth)
        directory = Path(worker.facts()["runtime_dir"])
        sockets = ["control", "events", "jobs"]
        assert sorted(path.name for path in directory.iterdir() if path.is_socket()) == sockets
        with Flow(worker, auth) as flow:
            for name in sockets:
                (directory / name).unlink()
                flow.goes_on()
                wait_until((directory / name).is_socket, 5.0, f"{name} to be there again")
            old = worker.kill("backend_adapter")  # connects to two of them, and is connected to
            worker.wait_replaced("backend_adapter", old)
            flow.goes_on()
            remove(directory)
            files = [directory / name for name in (*sockets, "handoff.msgpack")]
            wait_until(lambda: all(file.exists() for file in files), 5.0, "them to be there again")
            assert directory.stat().st_mode & 0o777 == 0o700
            wait_until((directory / "sessions" / kept["session_id"]).exists, what="the session")
            old = worker.kill("backend_adapter")
            worker.wait_replaced("backend_adapter", old)
            flow.goes_on()
        assert is_open(worker, kept)
        until_written(worker.state_dir, worker, flow.answered)
        old = worker.kill("reporter")
        worker.wait_replaced("reporter", old)
        assert serve(worker, auth, 10) == {"ok": 10}
        until_told(worker, flow.answered + 10)
        old = worker.kill("ingress-0")
        worker.wait_replaced("ingress-0", old)
        wait_until(lambda: worker.status()["ready"], what="ready again")
    assert not directory.exists()


@row(
    18,
    "the state directory is deleted under a running worker",
    seen="requests are answered; the log says so; within seconds `status` and the other commands"
    " work again, a second start is refused (75), and logs are written",
    does="makes it again: takes the lock anew, publishes where it is, opens the logs, writes the"
    " accounts as a whole",
)
def test_row_18_the_state_directory_is_deleted(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        auth, state = worker.auth(), worker.state_dir
        assert serve(worker, auth, 10) == {"ok": 10}
        until_told(worker, 10)
        remove(state)
        wait_until(lambda: read_running(str(state)), 5.0, "the run to be found again")
        assert worker.facts()["pid"] == worker.process.pid
        wait_until(
            lambda: "had been removed; made again" in worker.printed, what="the log to say so"
        )
        large = {"inputs": "x" * 4_000_000, "parameters": {"max_new_tokens": 5}}  # has a file there
        told = post_json(f"{worker.url}/generate", {"auth_data": auth, "payload": large})
        assert "generated_text" in told, told
        assert serve(worker, auth, 10) == {"ok": 10}
        flood = {"kind": "flood_log", "megabytes": 1}
        post_json(f"http://127.0.0.1:{worker.model_port}/demo/fault", flood)
        wait_until((state / "logs" / "model.log").exists, what="the log")
        wait_until((state / "reports.sqlite").exists, what="the accounts")
        wait_until(lambda: stored_run(state) == worker.run_id, what="the accounts, whole")
        second = subprocess.run(
            command(*ANY_PORT, "--state-dir", str(state)), cwd=tmp_path, env=environment(),
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert second.returncode == ExitCode.ALREADY_RUNNING, second.stderr
        until_written(state, worker, 21)
        old = worker.kill("reporter")
        worker.wait_replaced("reporter", old)
        assert serve(worker, auth, 1) == {"ok": 1}
        until_told(worker, 22)
