"""The embedded default, and when it may be used at all."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from pathlib import Path

import pytest

from supervisor import settings_sources
from supervisor.embedded import embedded
from supervisor.secret_texts import secrets_of
from supervisor.settings import Settings
from supervisor.settings_sources import SettingsError
from supervisor.source import Source

_MODEL_FILE = """
[model]
url = "http://127.0.0.1:18000"
[[route]]
path = "/generate"
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No platform, no worker.toml: what a person has who types the command for the first time."""
    for field in settings_sources.fields():
        for name in (field.variable, field.own_variable):
            if name:
                monkeypatch.delenv(name, raising=False)
    for name in ("PUBLIC_IPADDR", "UNSECURED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_it_is_a_tree_that_a_file_could_hold() -> None:
    settings = embedded(Settings())
    assert settings.model.command[1:4] == ["-P", "-m", "supervisor.demo.model"]
    port = settings.model.command[settings.model.command.index("--port") + 1]
    assert settings.model.url == f"http://127.0.0.1:{port}"
    assert settings.benchmark.route in {route.path for route in settings.route}
    assert {route.path for route in settings.route} == {
        "/generate",
        "/generate_stream",
        "/v1/completions",
        "/v1/chat/completions",
    }
    assert all(route.workload.default == 256 for route in settings.route)


def test_every_run_has_a_token_of_its_own_that_is_masked() -> None:
    first, second = embedded(Settings()), embedded(Settings())
    assert first.engine.token != second.engine.token
    assert first.engine.token in secrets_of(first, {})


def test_nothing_configured_runs_the_demo_on_loopback() -> None:
    plan = Source().plan()
    assert plan.embedded
    assert plan.settings.worker.host == "127.0.0.1"
    assert plan.settings.worker.id == 1
    assert plan.worker_url == f"http://127.0.0.1:{plan.settings.worker.port}"
    assert plan.local_engine_port and plan.engine_url.startswith("http://127.0.0.1:")


def test_what_the_person_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONTAINER_ID", "77")
    monkeypatch.setenv("LIGHTERMAN_WORKER_DRAIN_S", "5")
    flags = {"worker.host": "0.0.0.0", "worker.port": "34567", "worker.state_dir": str(tmp_path)}
    plan = Source(None, flags).plan()
    worker = plan.settings.worker
    assert (worker.host, worker.port, worker.id, worker.drain_s) == ("0.0.0.0", 34567, 77, 5.0)
    assert worker.state_dir == str(tmp_path)


def test_a_default_port_that_is_taken_gives_way() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", 3000))
            holder.listen()
        except OSError:
            pass  # somebody else holds it: just as good
        assert Source().plan().settings.worker.port != 3000
        asked = Source(None, {"worker.port": "3000"}).plan()
        assert asked.settings.worker.port == 3000, "who names a port wants that one"


def test_a_port_that_was_asked_for_does_not_give_way() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert Source(None, {"worker.port": str(port)}).plan().settings.worker.port == port


def test_worker_toml_is_found_and_a_model_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text(_MODEL_FILE)
    plan = Source().plan()
    assert not plan.embedded
    assert plan.settings.model.url == "http://127.0.0.1:18000"
    assert plan.settings.worker.host == "0.0.0.0"


def test_worker_py_is_found_where_there_is_no_worker_toml(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit")
    plan = Source().plan()
    assert not plan.embedded and not plan.configured
    assert plan.settings.hooks.file == str(tmp_path / "worker.py")
    (tmp_path / "worker.toml").write_text(_MODEL_FILE)
    assert Source().plan().configured


def test_functions_without_a_route_are_a_fault_and_no_demo(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text('[hooks]\nfile = "worker.py"\n')
    (tmp_path / "worker.py").write_text("raise SystemExit")
    with pytest.raises(SettingsError, match=r"python -m supervisor worker\.py"):
        Source().plan()


def test_worker_py_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        Source("worker.py").plan()


def test_a_directory_means_the_file_that_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BACKEND", raising=False)
    for name in ("tgi", "vllm"):
        (tmp_path / "workers" / name).mkdir(parents=True)
        (tmp_path / "workers" / name / "server.py").write_text("")
    assert Source("workers/tgi").script == str(tmp_path / "workers" / "tgi" / "server.py")
    with pytest.raises(SettingsError, match="of workers/ it has tgi, vllm"):
        Source(".").plan()
    monkeypatch.setenv("BACKEND", "vllm")
    assert Source(".").script == str(tmp_path / "workers" / "vllm" / "server.py")
    (tmp_path / "workers" / "vllm" / "worker.py").write_text("")
    assert Source(".").script == str(tmp_path / "workers" / "vllm" / "worker.py")
    (tmp_path / "worker.toml").write_text(_MODEL_FILE)
    assert Source(".").plan().settings.model.url == "http://127.0.0.1:18000"
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="this directory holds no"):
        Source("empty").plan()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REPORT_ADDR", "https://run.example.com"),
        ("MASTER_TOKEN", "hunter2hunter2"),
        ("MODEL_HEALTH_ENDPOINT", "/health"),
        ("MODEL_LOG", "/var/log/model.log"),
    ],
)
def test_an_instance_never_runs_the_demo(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match="no model is configured") as caught:
        Source().plan()
    assert "hunter2" not in str(caught.value)


def test_reload_keeps_the_ports_that_were_left_open(tmp_path: Path) -> None:
    open_ports = "[worker]\nport = 0\nadmin_port = 0\n[engine]\nlocal_port = 0\n"
    (tmp_path / "worker.toml").write_text(open_ports + _MODEL_FILE)
    source = Source("worker.toml")
    plan = source.plan()
    changed = open_ports + _MODEL_FILE + "concurrency = 1\n"
    (tmp_path / "worker.toml").write_text(changed)
    again = source.plan_again(plan)
    assert again.worker_url == plan.worker_url
    assert again.admin_url == plan.admin_url
    assert again.engine_url == plan.engine_url
    assert again.settings.route[0].concurrency == 1


def test_reload_of_the_demo_sees_every_change_and_keeps_what_it_chose(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 3000)) if _free(3000) else nullcontext():
        demo = Source().plan()  # on another port than the default
    assert Source().plan_again(demo) == demo
    file = tmp_path / "worker.toml"
    file.write_text("[limits]\nsessions = 3\n[model]\nstop_timeout_s = 2\n[worker]\nport = 3999\n")
    again = Source().plan_again(demo).settings
    assert (again.limits.sessions, again.model.stop_timeout_s, again.worker.port) == (3, 2, 3999)
    assert again.model.url == demo.settings.model.url and again.route == demo.settings.route
    assert again.engine == demo.settings.engine
    file.write_text("[limits]\nsesions = 3\n")
    with pytest.raises(SettingsError, match="sesions"):
        Source().plan_again(demo)
    file.write_text(_MODEL_FILE)
    with pytest.raises(SettingsError, match="start the worker anew"):
        Source().plan_again(demo)


def _free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_reload_of_a_model_never_becomes_the_demo(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text(_MODEL_FILE)
    plan = Source("worker.toml").plan()
    (tmp_path / "worker.toml").write_text("")
    with pytest.raises(SettingsError, match="any more"):
        Source("worker.toml").plan_again(plan)


def test_state_dir_is_found_where_other_settings_are_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIGHTERMAN_WORKER_PORT", "no port")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Source().state_dir() == str(tmp_path / "lighterman")
    assert Source(None, {"worker.state_dir": "/tmp/elsewhere"}).state_dir() == "/tmp/elsewhere"
