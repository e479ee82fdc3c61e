"""The worker as a person starts it: the demo on loopback, its commands, its ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from supervisor.exit_codes import ExitCode
from supervisor.ports import free_port
from tests.kit import demo_programs
from tests.kit.running_worker import ANY_PORT, RunningWorker, command, environment
from tests.kit.wait import wait_until


def _run(directory: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    return subprocess.run(
        command(*args), cwd=directory, env=environment(**env), capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip


def test_the_first_minute(tmp_path: Path) -> None:
    """Start, ask, look, restart, drain: everything that the timeline says to type."""
    with RunningWorker(tmp_path) as worker:
        status = worker.until_ready()
        assert status["ready"] and status["embedded"] and not status["reason"]
        names = [member["name"] for member in status["members"]]
        assert names == ["engine", "model", "backend_adapter", "ingress-0", "reporter"]
        assert all(member["state"] == "ready" for member in status["members"])
        assert status["urls"]["worker"].startswith("http://127.0.0.1:")

        asked = worker.say("ask", "What is the answer to the universe?")
        assert asked.returncode == 0, asked.stderr
        assert len(asked.stdout.split()) > 10
        steps = worker.say("ask", "--json", "--max-tokens", "8", "--route", "/generate", "Hello")
        assert steps.returncode == 0, steps.stderr
        messages = [json.loads(line) for line in steps.stdout.splitlines()]
        assert [message["step"] for message in messages] == [1, 2, 3, 4, 5, 6, 7]
        assert messages[6]["message"]["request"]["status"] == "Success"
        refused = worker.say("ask", "--route", "/nowhere", "Hello")
        assert refused.returncode == ExitCode.NOT_READY and "404" in refused.stderr

        shown = worker.say("status")
        assert shown.returncode == 0 and "backend_adapter" in shown.stdout
        lines = worker.say("logs", "model", "-n", "1")
        assert lines.returncode == 0 and lines.stdout.count("\n") == 1
        own = worker.say("logs", "supervisor").stdout
        assert "● ready in" in own
        log = Path(worker.state_dir, "logs", "supervisor.log").read_text()
        assert "● ready in" in log

        before = worker.member("ingress-0")["pid"]
        assert worker.say("restart", "ingress-0").returncode == 0
        wait_until(
            lambda: worker.member("ingress-0")["pid"] not in (before, 0), what="a new ingress"
        )
        wait_until(lambda: worker.status()["ready"], what="ready again")
        nobody = worker.say("restart", "nobody")
        assert nobody.returncode == ExitCode.NOT_READY and "there are: engine" in nobody.stderr
        assert worker.say("reload").returncode == 0

        assert worker.say("drain").returncode == 0
        assert worker.until_gone() == ExitCode.CLEAN, worker.output
        assert worker.left_over() == []
        assert worker.say("status").returncode == ExitCode.NOT_RUNNING


def test_sigterm_ends_it_cleanly_and_leaves_no_file_behind(tmp_path: Path) -> None:
    with RunningWorker(tmp_path) as worker:
        worker.until_ready()
        runtime_dir = Path(worker.facts()["runtime_dir"])
        assert runtime_dir.is_dir()
        worker.signal(signal.SIGTERM)
        assert worker.until_gone() == ExitCode.CLEAN, worker.output
        assert worker.left_over() == []
        assert not runtime_dir.exists()


class OnTerminal(RunningWorker):
    """One whose words go to a terminal."""

    def __enter__(self) -> OnTerminal:
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command(*self._args), cwd=self.directory, env=self._env, stdin=subprocess.DEVNULL,
            stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()
        return self

    def _read(self, terminal: int) -> None:
        with open(self.directory / "output", "wb", buffering=0) as output, suppress(OSError):
            while data := os.read(terminal, 65_536):  # an OSError: nobody writes to it any more
                output.write(data)
        os.close(terminal)


@pytest.mark.parametrize("kind", [RunningWorker, OnTerminal])
def test_a_killed_member_comes_back(tmp_path: Path, kind: type[RunningWorker]) -> None:
    with kind(tmp_path) as worker:
        status = worker.until_ready()
        for name in ("model", "reporter"):
            pid = next(m["pid"] for m in status["members"] if m["name"] == name)
            os.kill(pid, signal.SIGKILL)
            wait_until(
                lambda name=name, pid=pid: worker.member(name)["pid"] not in (pid, 0),  # type: ignore[misc]
                what=f"a new {name}",
            )
        wait_until(lambda: worker.status()["ready"], what="ready again")
        assert "signal 9" in worker.member("model")["last_exit"]
        said = worker.say("logs", "model", "-n", "500").stdout
        before, found, after = said.partition("--- killed by signal 9 (SIGKILL)")
        assert found and before.strip() and "; start 2 ---\n" in after, said
        said = worker.say("logs", "supervisor").stdout
        assert said.count("✗ model: killed by signal 9 (SIGKILL)") == 1, said
        assert said.count("● ready in") == 1 and "\x1b" not in said
        assert "✗ model: killed by signal 9 (SIGKILL)" in worker.output


def test_a_model_server_that_does_not_come_is_said_to_be_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "model.log"
    (tmp_path / "worker.toml").write_text(
        f'[model]\nurl = "http://127.0.0.1:1"\nhealth = "/health"\nlog_file = "{log}"\n'
        'ready_log = ["complete"]\n[[route]]\npath = "/x"\n'
    )

    def said(text: str) -> None:
        wait_until(lambda: text in worker.status()["reason"], what=text)
        shown = worker.say("status")
        assert "○ not ready: the model server is not ready: waiting for" in shown.stdout
        assert shown.returncode == ExitCode.NOT_READY

    with RunningWorker(tmp_path, "worker.toml") as worker:
        worker.facts()
        said(f"waiting for a line with 'complete' in {log} (no such file yet)")
        log.write_text("complete\n")
        said("waiting for GET /health to answer 2xx (last: ")
        page = worker.facts()["admin_url"] + "/readyz"

        def same() -> bool:
            with pytest.raises(urllib.error.HTTPError, match="503") as answer:
                urllib.request.urlopen(page, timeout=30)
            with answer.value:
                reason = json.load(answer.value)["reason"]
            return bool("waiting for GET /health" in reason and reason == worker.status()["reason"])

        wait_until(same, what="the page to say it in the same words")


def test_without_the_engines_key_it_is_not_ready(tmp_path: Path) -> None:
    """Every signed request would be refused, however well the model server is."""
    port = free_port("127.0.0.1")
    address = f"http://127.0.0.1:{port}"
    model_port = free_port("127.0.0.1", {port})
    model = [sys.executable, "-m", "supervisor.demo.model", "--port", str(model_port)]
    (tmp_path / "worker.toml").write_text(
        f'[model]\nurl = "http://127.0.0.1:{model_port}"\nhealth = "/health"\n'
        f'command = {json.dumps(model)}\n[engine]\naddresses = ["{address}"]\n'
        '[[route]]\npath = "/generate"\n'
    )
    with RunningWorker(tmp_path, "worker.toml") as worker:
        worker.facts()
        said = "no public key from the engine yet, every signed request is refused: " + address
        wait_until(lambda: said in worker.status()["reason"], what="word of the key, and why")
        status = worker.status()
        assert status["model"]["ready"] and not status["ready"]
        shown = worker.say("status")
        assert "○ not ready: no public key from the engine yet" in shown.stdout
        assert shown.returncode == ExitCode.NOT_READY
        engine = [sys.executable, "-m", "supervisor.demo.engine", "--port", str(port)]
        with subprocess.Popen(engine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as late:
            try:
                worker.until_ready()
                assert worker.status()["ready"]
            finally:
                late.kill()


def test_the_state_directory_comes_from_where_the_person_says(tmp_path: Path) -> None:
    with RunningWorker(tmp_path) as worker:
        worker.facts()
        variable = {"LIGHTERMAN_WORKER_STATE_DIR": worker.state_dir}
        assert _run(tmp_path, "status", "--json", **variable).returncode in (0, 1)
        elsewhere = _run(tmp_path, "status", XDG_STATE_HOME=str(tmp_path / "elsewhere"))
        assert elsewhere.returncode == ExitCode.NOT_RUNNING


def test_a_state_directory_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = _run(tmp_path, *ANY_PORT, "--state-dir", str(tmp_path / "file" / "state"))
    assert ended.returncode == ExitCode.SETTINGS
    assert "cannot use the state directory" in ended.stderr


def test_a_port_that_is_taken_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        state = str(tmp_path / "state")
        ended = _run(tmp_path, *ANY_PORT, "--port", port, "--state-dir", state)
    assert ended.returncode == ExitCode.PORT_TAKEN
    assert f"worker.port: port {port} is held by" in ended.stderr
    assert f"pid {os.getpid()}" in ended.stderr


def test_a_host_that_is_no_address_of_this_machine_is_named(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    ended = _run(tmp_path, *ANY_PORT, "--port", "1", "--set", "worker.host=203.0.113.1",
                 "--state-dir", state)  # fmt: skip
    assert ended.returncode == ExitCode.SETTINGS
    assert "worker.host: cannot bind port 1 of 203.0.113.1" in ended.stderr
    assert "0.0.0.0" in ended.stderr


@pytest.mark.parametrize("style", ["text", "json"])
def test_without_a_terminal_every_line_is_a_log_line(tmp_path: Path, style: str) -> None:
    with RunningWorker(tmp_path, "--log-format", style) as worker:
        worker.until_ready()
        worker.signal(signal.SIGINT)
        assert worker.until_gone() == ExitCode.CLEAN
        lines = [line for line in worker.output.splitlines() if line.strip()]
    assert "\x1b" not in "".join(lines)
    if style == "json":
        told = [json.loads(line) for line in lines]
        assert any(entry["message"].startswith("● ready in") for entry in told)
        assert {"supervisor", "ingress-0"} <= {entry["process"] for entry in told}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_cannot_start_goes_on_saying_so(number: int, tmp_path: Path) -> None:
    """Until a signal ends it, with the exit code of what was wrong."""
    with demo_programs.running("supervisor.demo.engine", tmp_path / "engine.log") as engine:
        engine.listening()
        env = {
            "REPORT_ADDR": f"http://127.0.0.1:{engine.port}", "MASTER_TOKEN": "t0k3n",
            "CONTAINER_ID": "7", "LIGHTERMAN_ENGINE_BEACON_S": "600",
        }  # fmt: skip
        with RunningWorker(tmp_path, "--set", "worker.portt=1", **env) as worker:
            wait_until(lambda: "again every 10 s until" in worker.output, what="it to say so")
            told = engine.get("/demo/record")["status"]
            assert [report["id"] for report in told] == [7]
            assert "worker.portt" in told[0]["error_msg"]
            assert worker.process.poll() is None
            worker.signal(number)
            assert worker.until_gone() == ExitCode.SETTINGS
            assert "Traceback" not in worker.output


def test_the_beacon_ends_by_itself(tmp_path: Path) -> None:
    """A port that is taken; the engine cannot be reached."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {"REPORT_ADDR": "http://127.0.0.1:1", "MASTER_TOKEN": "t0k3n", "CONTAINER_ID": "7"}
        flags = (
            "--set", "worker.host=127.0.0.1", "--set", "worker.admin_port=0",
            "--set", "engine.beacon_s=0.5", "--set", "model.url=http://127.0.0.1:1",
            "--state-dir", str(tmp_path / "state"), str(tmp_path / "worker.toml"),
        )  # fmt: skip
        (tmp_path / "worker.toml").write_text('[[route]]\npath = "/a"\n')
        ended = _run(tmp_path, "--port", port, *flags, **env)
        assert ended.returncode == ExitCode.PORT_TAKEN, ended.stderr
        assert f"port {port} is held by" in ended.stderr
        assert "(the engine could not be told; again every 10 s until " in ended.stderr
