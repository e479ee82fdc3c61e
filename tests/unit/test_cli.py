"""The command line: commands, options, exit codes, and what each says."""

from __future__ import annotations

import http.server
import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import supervisor
from supervisor import beacon, cli, plain_http, run_dir, settings_sources, templates, wire
from supervisor.answer_text import AnswerError, text_of, texts_of_stream
from supervisor.ask import AskError, choose_route, make_payload, masked
from supervisor.exit_codes import ExitCode
from supervisor.plan import make
from supervisor.run_lock import RunLock
from supervisor.settings_sources import Fault
from supervisor.talk import duration
from tests.kit.clock import FakeClock

ROOT = Path(supervisor.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in settings_sources.fields():
        for name in (field.variable, field.own_variable):
            if name:
                monkeypatch.delenv(name, raising=False)
    for name in ("PUBLIC_IPADDR", "UNSECURED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("argv", "command", "rest"),
    [
        ([], "run", []),
        (["worker.toml"], "run", ["worker.toml"]),
        (["./status"], "run", ["./status"]),
        (["status", "--json"], "status", ["--json"]),
        (["--state-dir", "drain", "status"], "status", ["--state-dir", "drain"]),
        (["--no-color", "--set", "a.b=c", "logs", "model"], "logs",
         ["--no-color", "--set", "a.b=c", "model"]),
        (["--port", "1", "worker.toml"], "run", ["--port", "1", "worker.toml"]),
    ],
)  # fmt: skip
def test_the_first_word_names_the_command(argv: list[str], command: str, rest: list[str]) -> None:
    assert cli.split(argv) == (command, rest)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["statsu"], "did you mean status?"),
        (["nonsense-word"], "neither a command nor a file"),
        (["--set", "worker.port"], "SECTION.NAME=VALUE"),
        (["init", "nothing-known"], "there are: vllm"),
        (["init"], "for which model server? there are: vllm"),
        (["ask"], "give TEXT"),
        (["ask", "--payload", "{", "--engine", "http://127.0.0.1:1"], "--endpoint"),
        (["status", "--nonsense"], "unrecognized arguments"),
        (["logs", "model", "-n", "many"], "invalid int value"),
    ],
)
def test_a_wrong_command_line_exits_64(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(argv)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == ExitCode.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["help", command])
    assert not stopped.value.code
    assert "usage: python -m supervisor" in capsys.readouterr().out


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in cli.COMMANDS)
    assert all(code.doc in text for code in ExitCode)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"lighterman {supervisor.__version__}\n"


# ------------------------------------------------------------------- commands without a worker


@pytest.mark.parametrize(
    "argv",
    [["status"], ["status", "--json"], ["restart", "model"], ["drain"], ["reload"],
     ["logs", "model"], ["ask", "hello"]],
)  # fmt: skip
def test_without_a_worker_commands_exit_2_and_name_the_directory(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*argv, "--state-dir", str(tmp_path / "none")]) == ExitCode.NOT_RUNNING
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error and "Traceback" not in error


def test_a_worker_that_has_only_begun_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = RunLock(str(tmp_path / "held"))
    lock.acquire()
    try:
        code = cli.main(["status", "--state-dir", str(tmp_path / "held")])
    finally:
        lock.release()
    assert code == ExitCode.NOT_READY
    assert "has only just begun" in capsys.readouterr().err


def test_check_names_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text("[worker]\nprot = 1\n[model]\nurl = 5\n[engien]\nx = 1\n")
    assert cli.main(["check", "bad.toml"]) == ExitCode.SETTINGS
    error = capsys.readouterr().err
    assert "bad.toml:2: unknown setting worker.prot (did you mean port?)" in error
    assert "bad.toml:4: model.url" in error
    assert "unknown section [engien]" in error


def test_check_shows_what_would_run_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.toml").write_text(
        '[engine]\naddresses = ["https://run.example.com"]\ntoken = "hunter2hunter2"\n'
        '[model]\nurl = "http://127.0.0.1:18000"\ncommand = ["sh", "--key", "hunter2hunter2"]\n'
        'env = { HF_TOKEN = "hf_secret" }\n'
        '[[route]]\npath = "/generate"\nconcurrency = 1\nworkload = { field = "max_tokens" }\n'
    )
    assert cli.main(["check", "good.toml"]) == ExitCode.CLEAN
    text = capsys.readouterr().out
    assert "https://run.example.com" in text and "sh --key '***'" in text
    assert "HF_TOKEN" in text and "serial" in text and "max_tokens, or 100" in text
    assert "hunter2" not in text and "hf_secret" not in text


@pytest.mark.parametrize("name", sorted(templates.SERVERS))
def test_init_writes_settings_that_are_right(name: str, tmp_path: Path) -> None:
    assert cli.main(["init", name, "--output", "made.toml"]) == ExitCode.CLEAN
    settings = settings_sources.load(tmp_path / "made.toml", {})  # the server is not installed
    plan = make(settings, embedded=False)
    server = templates.SERVERS[name]
    assert plan.settings.model.ready_log == list(server.ready_log)
    assert plan.settings.model.error_log == list(server.error_log)
    assert plan.settings.model.command == list(server.command)
    assert plan.settings.model.url == f"http://127.0.0.1:{server.port}"
    assert [route.path for route in plan.settings.route] == [r.path for r in server.routes]
    assert bool(plan.settings.benchmark.payload) == (server.benchmark is not None)


_SCRIPT = """
from vastai import Worker, WorkerConfig, HandlerConfig, LogActionConfig
Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=18000, model_log_file="/var/log/m.log",
    model_healthcheck_url="/health",
    handlers=[HandlerConfig("/ocr", max_queue_time=None%s), HandlerConfig("/b")],
    log_action_config=LogActionConfig(on_load=["it is \\"up\\""]),
)).run(host="0.0.0.0")
"""


def test_init_from_a_worker_py_writes_what_it_amounts_to(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(_SCRIPT % "")
    assert cli.main(["init", "--from", "worker.py", "--output", "made.toml"]) == ExitCode.CLEAN
    settings = settings_sources.load(tmp_path / "made.toml", {})
    assert settings.model.url == "http://127.0.0.1:18000"
    assert settings.model.ready_log == ['it is "up"']
    assert (settings.model.log_file, settings.model.health) == ("/var/log/m.log", "/health")
    ocr, other = settings.route
    assert (ocr.path, ocr.max_queue_time_s, ocr.concurrency) == ("/ocr", math.inf, 1)
    assert (other.path, other.max_queue_time_s) == ("/b", 30.0)


def test_init_from_a_worker_py_with_functions_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "worker.py").write_text(_SCRIPT % ", workload_calculator=len")
    assert cli.main(["init", "--from", "worker.py"]) == ExitCode.USAGE
    assert "/ocr: a payload or workload" in capsys.readouterr().err
    assert not (tmp_path / "worker.toml").exists()
    (tmp_path / "worker.py").write_text("1 / 0")
    assert cli.main(["init", "--from", "worker.py"]) == ExitCode.USAGE
    assert "worker.py:1: ZeroDivisionError" in capsys.readouterr().err


def test_init_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "worker.toml").write_text("mine")
    assert cli.main(["init", "vllm"]) == ExitCode.USAGE
    assert (tmp_path / "worker.toml").read_text() == "mine"
    assert "is there already" in capsys.readouterr().err


# --------------------------------------------------------------------- a broken installation


def _start(directory: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin", "HOME": str(directory)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "supervisor", "--version"],
        env=environ, cwd=directory, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("supervisord.py", ""),
        ("__init__.py", "#\n"),
        ("source.py", "from supervisor.datatypes import process_or_group_name\n"),
    ],
)
def test_a_mixed_installation_is_told_in_one_line(tmp_path: Path, file: str, text: str) -> None:
    package = tmp_path / "site" / "supervisor"
    shutil.copytree(ROOT / "supervisor", package, ignore=shutil.ignore_patterns("__pycache__"))
    good = _start(tmp_path / "site")
    assert good.returncode == 0, good.stderr
    (package / file).write_text(text)
    mixed = _start(tmp_path / "site")
    assert mixed.returncode == ExitCode.MIXED_INSTALL
    assert mixed.stderr.count("\n") == 1
    assert "environment of its own" in mixed.stderr


# ----------------------------------------------------------------------------- the beacon


@pytest.fixture
def engine() -> Iterator[tuple[str, list[Any]]]:
    """A server that takes whatever is posted to it."""
    posted: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", posted
    server.shutdown()
    thread.join()
    server.server_close()


def test_bad_settings_are_told_to_the_engine_once(
    engine: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, posted = engine
    monkeypatch.setenv("REPORT_ADDR", f"http://127.0.0.1:1,{url}")
    monkeypatch.setenv("MASTER_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("CONTAINER_ID", "77")
    monkeypatch.setenv("WORKER_PORT", "many hunter2hunter2")
    assert cli.main([]) == ExitCode.SETTINGS
    said = capfd.readouterr()
    assert "worker.port" in said.err
    [(path, report)] = posted
    assert path == "/worker_status/"
    assert (report["id"], report["mtoken"]) == (77, "hunter2hunter2")
    assert "worker.port" in report["error_msg"] and "hunter2" not in report["error_msg"]
    assert report["loadtime"] == 0 and report["working_request_idxs"] == []


def test_the_engine_is_found_in_a_file_that_is_wrong_elsewhere(
    engine: tuple[str, list[Any]], tmp_path: Path
) -> None:
    url, posted = engine
    (tmp_path / "bad.toml").write_text(
        f'[engine]\naddresses = ["{url}"]\ntoken = "t0ken"\n[worker]\nid = 5\nport = "x"\n'
    )
    faults = (Fault("bad.toml:6", "worker.port: no number"),)
    assert beacon.Beacon(faults, tmp_path / "bad.toml", {}).tell()
    assert posted[0][1]["id"] == 5 and "bad.toml:6" in posted[0][1]["error_msg"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"REPORT_ADDR": "http://127.0.0.1:1"},
        {"MASTER_TOKEN": "t0ken"},
        {"REPORT_ADDR": "nonsense", "MASTER_TOKEN": "t0ken"},
        {"REPORT_ADDR": "http://127.0.0.1:1", "MASTER_TOKEN": "t0ken"},
    ],
)
def test_where_no_engine_can_be_told_nothing_happens(environ: dict[str, str]) -> None:
    assert not beacon.Beacon((Fault("here", "wrong"),), None, environ).tell()


def test_each_fact_for_the_beacon_is_taken_where_it_makes_sense(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        '[engine]\naddresses = ["http://127.0.0.1:9"]\ntoken = "t0ken"\nbeacon_s = 90.5\n'
        '[worker]\nid = "none"\n[nonsense]\n'
    )
    told = beacon.Beacon([], file, {})
    assert told.has_engine and told.for_s == 90.5
    for environ, flags, for_s in (
        ({"LIGHTERMAN_ENGINE_BEACON_S": "7"}, {}, 7.0),
        ({"LIGHTERMAN_ENGINE_BEACON_S": "7"}, {"engine.beacon_s": "8"}, 8.0),
        ({"LIGHTERMAN_ENGINE_BEACON_S": "soon"}, {}, 90.5),
        ({"LIGHTERMAN_ENGINE_BEACON_S": "-1", "CONTAINER_ID": "x"}, {}, 90.5),
        ({"LIGHTERMAN_ENGINE_BEACON_S": "0"}, {}, 0.0),
    ):
        assert beacon.Beacon([], file, environ, flags).for_s == for_s
    alone = beacon.Beacon([], None, {"LIGHTERMAN_ENGINE_BEACON_S": "60"})
    assert not alone.has_engine and alone.for_s == 0, "nobody to tell: nothing to wait for"


@pytest.mark.parametrize(
    ("for_s", "takes_s", "begun"),
    [
        (25.0, 0.0, [0.0, 10.0, 20.0]),
        (20.0, 3.0, [0.0, 10.0]),
        (5.0, 0.0, [0.0]),
        (45.0, 15.0, [0.0, 15.0, 30.0]),
    ],
)
def test_the_beacon_goes_on_for_its_time(for_s: float, takes_s: float, begun: list[float]) -> None:
    clock, told = FakeClock(), list[tuple[str, float]]()
    began_at = clock()

    def tell(which: str) -> None:
        told.append((which, clock() - began_at))
        clock.advance(takes_s)

    beacon.go_on(partial(tell, "first"), partial(tell, "again"), for_s, clock, clock.advance)
    assert [when for _, when in told] == begun
    assert [which for which, _ in told] == ["first", *["again"] * (len(begun) - 1)]
    assert clock() - began_at >= for_s, "and then it exits"


# ------------------------------------------------------------------------ asking a question


def test_the_route_that_takes_text_is_chosen() -> None:
    assert choose_route(["/generate", "/v1/chat/completions"], True) == "/v1/chat/completions"
    assert choose_route(["/generate_stream", "/generate"], True) == "/generate_stream"
    assert choose_route(["/generate_stream", "/generate"], False) == "/generate"
    assert choose_route(["/tts"], True) == "/tts"
    with pytest.raises(AskError, match="--route"):
        choose_route([], True)


def test_payloads_fit_their_routes() -> None:
    chat = make_payload("/v1/chat/completions", "hi", 5, True)
    assert chat["messages"][0]["content"] == "hi" and chat["stream"] is True
    assert make_payload("/v1/completions", "hi", 5, False)["prompt"] == "hi"
    assert make_payload("/generate", "hi", 5, True)["parameters"] == {"max_new_tokens": 5}


STREAMS = {
    "chat": (b'data: {"choices":[{"delta":{"content":"a "}}]}\n\n'
             b'data: {"choices":[{"delta":{"content":"b"}}]}\n\ndata: [DONE]\n\n', "a b"),
    "completion": (b'data: {"choices":[{"text":"a "}]}\r\n\r\ndata: {"choices":[{"text":"b"}]}',
                   "a b"),
    "tgi": (b'data:{"token":{"text":"a "},"generated_text":null}\n\n'
            b'data:{"token":{"text":"b"},"generated_text":"a b"}\n\n', "a b"),
    "ollama": (b'{"message":{"content":"a "}}\n{"message":{"content":"b"},"done":true}\n', "a b"),
    "none that we know": (b'data: {"tok": 1}\n\ndata: {"tok": 2}\n\n', '{"tok": 1}\n{"tok": 2}'),
    "some that we know": (b'{"usage": 1}\n{"response":"b"}\n{"usage": 2}\n', "b"),
    "comments": (b": keep alive\n\nevent: x\n\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(STREAMS))
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_streams_are_understood_however_they_are_cut(name: str, size: int) -> None:
    body, text = STREAMS[name]
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert "".join(texts_of_stream(pieces)) == text


def test_an_error_within_a_stream_is_an_error() -> None:
    event = b'data: {"error": {"kind": "model_failed", "message": "it died"}}\n\n'
    with pytest.raises(AnswerError, match="model_failed: it died"):
        list(texts_of_stream([event]))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"choices":[{"message":{"content":"hi"}}]}', "hi"),
        (b'{"choices":[{"text":"hi"}]}', "hi"),
        (b'[{"generated_text":"hi"}]', "hi"),
        (b'{"generated_text":"hi"}', "hi"),
        (b'{"image": 1}', '{\n  "image": 1\n}'),
        (b"plain", "plain"),
    ],
)
def test_whole_answers_are_understood(body: bytes, text: str) -> None:
    assert text_of(body, "text/plain") == text


def test_bytes_are_not_written_to_the_terminal() -> None:
    assert text_of(b"\x89PNG\xff", "image/png") == "(5 bytes of image/png)"


def test_keys_and_signatures_are_cut() -> None:
    message = {"auth_data": {"signature": "abcd" * 20}, "api_key": "short", "cost": 1}
    assert masked(message) == {
        "auth_data": {"signature": "abcd…(80 characters)"},
        "api_key": "***",
        "cost": 1,
    }


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(plain_http.HttpError, match=r"http://127\.0\.0\.1:1/x: "):
        plain_http.request("http://127.0.0.1:1/x", timeout_s=10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.25, "4.2 s"), (187, "3 m 07 s"), (18_720, "5 h 12 m"), (183_600, "2 d 3 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("name", ["t", "long" * 20])
def test_a_runs_directory_leaves_room_for_the_names_of_sockets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path("/tmp", name) if name == "t" else tmp_path / name
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(here))
    made = Path(run_dir.make())
    try:
        assert made.parent == (here if name == "t" else Path("/tmp"))
        assert made.stat().st_mode & 0o777 == 0o700
        wire.ipc_address(str(made), "backend_adapter")
    finally:
        made.rmdir()
        if name == "t":
            here.rmdir()
