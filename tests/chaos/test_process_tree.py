"""What the model server leaves behind, and what comes to us as orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor import process_scan, process_tree
from supervisor.ports import free_port
from tests.chaos.deaths import SABOTAGE, fault, paced
from tests.chaos.table import row
from tests.kit.spawned import ROOT, Run, alive, processes, reap
from tests.kit.wait import DEADLINE_S, wait_until
from tests.kit.worker import Worker, end


@pytest.fixture
def run() -> Iterator[Run]:
    with processes() as run:
        yield run


@row(
    9,
    "somebody sends the model server signal 9, and nothing says who",
    seen="`killed by signal 9 (SIGKILL), not by this worker: perhaps out of memory`",
    does="knows which signals it has sent itself",
    on="real processes, but no worker",
)
def test_row_09_a_kill_that_we_did_not_send_is_told_apart(run: Run) -> None:
    process = run.misbehave("sleep")
    os.kill(process.pid, signal.SIGKILL)
    ended = reap(process)
    assert ended.foreign and not ended.oom
    assert "signal 9" in ended.describe() and "perhaps out of memory" in ended.describe()


@row(
    10,
    "the model server dies and leaves processes that hold its port, or fork without end",
    seen="a usual restart",
    does="kills its whole tree before it starts it again: daemons in sessions of their own, and "
    "what forks faster than /proc can be read; they are found by their session, by two variables "
    "in their environment and by their parents",
)
def test_row_10_what_the_model_server_leaves_behind(tmp_path: Path) -> None:
    def ours(worker: Worker) -> set[int]:
        return {member["pid"] for member in worker.members().values()}

    with paced(tmp_path, environ=SABOTAGE) as worker:
        daemon = fault(worker, "leave_grandchild", hold_port=True)["grandchild_pid"]
        # not port_holder: the model server holds it, too, and either may be named
        held = psutil.Process(daemon).net_connections("tcp")
        assert worker.model_port in {one.laddr.port for one in held}
        old = worker.kill("model")
        worker.wait_replaced("model", old)
        assert not [p for p in process_scan.processes() if p.pid == daemon and p.alive]

        old = worker.kill("model", signal.SIGRTMIN)  # it forks what forks
        forked = wait_until(
            lambda: [p for p in process_tree.find_run(worker.run_id) if p not in ours(worker)],
            what="its children",
        )
        session = os.getsid(forked[0]) if alive(forked[0]) else 0
        os.kill(old, signal.SIGKILL)
        worker.wait_replaced("model", old)
        assert set(worker.leftovers()) == ours(worker)
        of_session = [p for p in process_scan.processes() if p.session == session and p.alive]
        assert session == 0 or not of_session
        wait_until(lambda: not alive(daemon), what="the exit status to be reaped")
        assert worker.members()["model"]["restarts"] == 2
        wait_until(lambda: worker.status()["ready"], what="ready again")


@row(
    10,
    "another program holds the model server's port",
    seen="`not started: its port 18000 is held by python3 (pid 4711)` in `status` and in the "
    "report to the engine",
    does="does not start it; looks again with growing pauses, and starts it once the port is free. "
    "Each look counts as a restart: when `restart.budget` is spent (after a minute and a half), it "
    "is given up, as in row 6",
)
def test_row_10_a_foreign_holder_of_the_port_is_named(tmp_path: Path) -> None:
    settings = ("restart.first_delay_s=0.3", "restart.max_delay_s=0.5")
    worker = Worker(tmp_path, settings=settings)
    hold = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(worker.model_port)], stdin=subprocess.PIPE
    ) as holder:
        try:
            wait_until(
                lambda: process_tree.port_holder(worker.model_port), what="the port to be held"
            )
            worker.start()
            said = f"not started: its port {worker.model_port} is held by"
            named = wait_until(
                lambda: (
                    (m := worker.members().get("model")) and said in m["reason"] and m["reason"]
                ),
                what="word of it",
            )
            assert f"(pid {holder.pid})" in named
            wait_until(lambda: worker.members()["engine"]["state"] == "ready", what="an engine")
            worker.facts()
            wait_until(
                lambda: (
                    (told := worker.record()["status"])
                    and f"(pid {holder.pid})" in told[-1].get("report", told[-1])["error_msg"]
                ),
                what="the engine to hear it",
            )
            assert holder.poll() is None  # it is nobody's to kill
            holder.kill()
            worker.wait_ready()
        finally:
            holder.kill()
            end(worker)


@row(
    10,
    "something forks without end, each generation ending the one before",
    seen="nothing",
    does="looks at /proc again for what appeared meanwhile, and kills whole process groups at "
    "once: no fork slips through that",
    on="real processes, but no worker",
)
def test_row_10_what_forks_without_end_is_swept(run: Run) -> None:
    # bounded all the same: should this test be killed, the chain ends by itself
    chain = "import os\n{}for _ in range(50_000):\n    if os.fork(): os._exit(0)"
    own_session = (
        "if os.fork(): os._exit(0)\nos.setsid()\nos.write(1, b'pid %d\\n' % os.getpid())\n"
    )
    for first in ("", own_session):
        process = run.spawn(sys.executable, "-c", chain.format(first))
        session = int(run.said(process, "pid ").split()[1]) if first else process.pid
        reap(process)
        assert process_tree.sweep(run.id, sids=[process.pid], deadline_s=DEADLINE_S) == 0
        while process_tree.reap_orphans(()):
            pass
        assert not [seen for seen in process_scan.processes() if seen.session == session]


@row(
    11,
    "500 orphans end at once, while other processes do",
    seen="nothing",
    does="reaps each by its number, 256 at once, and never just whoever ended: no exit status of a "
    "process that somebody waits for is lost",
    on="real processes, but no worker",
)
def test_row_11_500_orphans_are_reaped_and_no_exit_is_lost(run: Run) -> None:
    watched = [run.misbehave("exit", str(code)) for code in range(8)]
    maker = run.misbehave("orphans", "500")
    known = {process.pid for process in run.started}
    reaped = 0

    def all_reaped() -> bool:
        nonlocal reaped
        now = process_tree.reap_orphans(known)
        assert now <= process_tree.REAP_AT_ONCE
        reaped += now
        return reaped >= 500

    run.said(maker, "done")
    wait_until(all_reaped, what="500 orphans")
    assert [reap(process).code for process in watched] == list(range(8))
    assert process_tree.reap_orphans(known) == 0


@row(
    11,
    "the model server leaves 500 orphans to the supervisor, and other processes die meanwhile",
    seen="the usual words for each death",
    does="the same, once with each heartbeat; no zombie stays",
)
def test_row_11_orphans_of_the_model_server(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    script = (
        f'"{sys.executable}" -m tests.kit.misbehaving orphans 500 &'
        f' exec "{sys.executable}" -m supervisor.demo.model --port {port}'
    )
    toml = (
        f"[model]\ncommand = {json.dumps(['/bin/sh', '-c', script])}\n"
        f'url = "http://127.0.0.1:{port}"\nhealth = "/health"\n'
    )
    worker = Worker(tmp_path, toml=toml, environ={"PYTHONPATH": ROOT})

    def zombies() -> int:
        children = [p for p in process_scan.processes() if p.parent == worker.process.pid]
        return sum(not child.alive for child in children)

    def all_left(times: int) -> None:
        log = worker.state_dir / "logs" / "model.log"
        wait_until(lambda: log.read_text().count("done") == times, 60.0, "500 more orphans")

    try:
        worker.start()
        wait_until(zombies, what="orphans that ended")
        reporter = worker.kill("reporter")
        worker.wait_ready()
        worker.wait_replaced("reporter", reporter)
        all_left(1)
        model = worker.kill("model")  # and once more
        wait_until(zombies, what="orphans that ended")
        worker.wait_replaced("model", model)
        all_left(2)
        wait_until(lambda: not zombies(), what="all to be reaped")
        for name in ("reporter", "model"):
            member = worker.members()[name]
            assert (member["restarts"], member["last_exit"][:18]) == (1, "killed by signal 9"), name
    finally:
        end(worker)
