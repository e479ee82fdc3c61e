"""The worker cannot start, as its settings are wrong: it says so, tells the engine, and ends."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from supervisor.exit_codes import ExitCode
from tests.chaos.table import row
from tests.kit import demo_programs
from tests.kit.running_worker import command, environment


def run(directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    state = str(directory / "state")
    return subprocess.run(
        command("--state-dir", state), cwd=directory, env=environment(**env), capture_output=True,
        text=True, timeout=90, check=False,
    )  # fmt: skip


def told(engine: demo_programs.Program) -> dict[str, str]:
    """How a worker is told whom to report to."""
    return {
        "REPORT_ADDR": f"http://127.0.0.1:{engine.port}", "MASTER_TOKEN": "t0k3n",
        "CONTAINER_ID": "7",
    }  # fmt: skip


@row(
    8,
    "the model server's command, its directory and the certificate do not exist",
    seen="exit 78; one line for each, with the file's line and what is missing; the engine gets a"
    " report with all of them as error_msg",
    does="looks for everything before it starts anything, and starts nothing",
)
def test_row_08_what_is_not_there_is_named_and_told(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text(
        '[model]\ncommand = ["no-such-server", "--fast"]\ncwd = "/nowhere"\n'
        'url = "http://127.0.0.1:9"\n[tls]\nenabled = true\ncert = "/nowhere/c"\n'
        '[[route]]\npath = "/generate"\n'
    )
    with demo_programs.running("supervisor.demo.engine", tmp_path / "engine.log") as engine:
        engine.listening()
        ended = run(tmp_path, **told(engine))
        assert ended.returncode == ExitCode.SETTINGS
        faults = (
            "worker.toml:2: model.command: there is no program 'no-such-server'",
            "worker.toml:3: model.cwd: there is no directory /nowhere",
            "worker.toml:6: cannot read the certificate file /nowhere/c",
        )
        (report,) = engine.get("/demo/record")["status"]
        for fault in faults:
            assert fault in ended.stderr and fault in report["error_msg"]
        assert report["id"] == 7 and "(the engine has been told)" in ended.stderr
        assert "t0k3n" not in ended.stderr + report["error_msg"]


@row(
    8,
    "settings are wrong, and the engine cannot be reached",
    seen="exit 78; every fault at once, each with its line",
    does="tries to tell the engine for 10 s at most, then ends",
)
def test_row_08_wrong_settings_end_it_with_every_fault(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text("[worker]\nport = 99999\nprot = 1\n[model]\nurl = 3\n")
    env = {"REPORT_ADDR": "http://127.0.0.1:1", "MASTER_TOKEN": "t0k3n", "CONTAINER_ID": "7"}
    ended = run(tmp_path, **env)
    assert ended.returncode == ExitCode.SETTINGS
    lines = [line.split(" ")[0] for line in ended.stderr.splitlines()]
    assert lines == ["worker.toml:2:", "worker.toml:3:", "worker.toml:5:"]
    assert not (tmp_path / "state" / "run.lock").exists()


@row(
    8,
    "settings are wrong, and the engine takes the connection and never answers",
    seen="as above",
    does="gives up 10 s after it began to tell: that is for all addresses together",
)
def test_row_08_an_engine_that_never_answers_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text("[worker]\nport = 99999\n")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as second,
        (tmp_path / "said").open("wb") as said,
    ):
        addresses = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (silent, second)]
        env = {"REPORT_ADDR": ",".join(addresses), "MASTER_TOKEN": "t0k3n", "CONTAINER_ID": "7"}
        silent.settimeout(60.0)
        process = subprocess.Popen(
            command("--state-dir", str(tmp_path / "state")),
            cwd=tmp_path, env=environment(**env), stdout=said, stderr=said,
        )  # fmt: skip
        try:
            connection, _ = silent.accept()
            began = time.monotonic()
            with connection:
                assert connection.recv(65_536).startswith(b"POST /worker_status/ ")
                # 10 s are its own, the rest is this machine's, where others run: two times 10 s,
                # for two addresses, would be too long
                assert process.wait(60.0) == ExitCode.SETTINGS
                assert time.monotonic() - began < 16.0
        finally:
            process.kill()
            process.wait()
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["worker.toml:2:"], lines
