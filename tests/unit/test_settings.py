"""Where settings come from, which source wins, and how every fault is told."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import settings_sources
from supervisor.secret_texts import secrets_of
from supervisor.settings import BenchmarkSettings, ModelSettings, RouteSettings, Settings
from supervisor.settings_rules import Fault, unreloadable
from supervisor.settings_sources import Handoff, SettingsError, load

MODEL = '[model]\nurl = "http://127.0.0.1:18000"\n[[route]]\npath = "/generate"\n'


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "worker.toml"
    path.write_text(text, "utf-8")
    return path


def faults(
    path: Path | None, environ: dict[str, str] | None = None, files: bool = False, **flags: str
) -> dict[str, Fault]:
    """Every fault, by its place without the directory."""
    told = {name.replace("__", "."): text for name, text in flags.items()}
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {}, told, files=files)
    assert str(caught.value) == "\n".join(map(str, caught.value.faults))
    by_place = {each.place.rsplit("/", 1)[-1]: each for each in caught.value.faults}
    assert len(by_place) == len(caught.value.faults)
    return by_place


# ------------------------------------------------------------------ sources


def test_nothing_at_all_is_the_default_tree() -> None:
    got = load(None, {"HOME": "/home/me"})
    expected = Settings()
    worker = msgspec.structs.replace(expected.worker, state_dir="/home/me/.local/state/lighterman")
    assert got == msgspec.structs.replace(expected, worker=worker)
    assert secrets_of(got, {}) == []


def test_a_flag_beats_the_environment_and_that_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "[worker]\nport = 1\nprocesses = 2\nid = 3\n[engine]\ntries = 9\n")
    environ = {"WORKER_PORT": "11", "LIGHTERMAN_WORKER_PROCESSES": "12", "CONTAINER_ID": "13"}
    got = load(path, environ, {"worker.processes": "22"})
    assert (got.worker.port, got.worker.processes, got.worker.id) == (11, 22, 13)
    assert got.engine.tries == 9


def test_our_own_variable_beats_the_platforms() -> None:
    environ = {"WORKER_PORT": "11", "LIGHTERMAN_WORKER_PORT": "12", "UNSECURED": "true"}
    assert load(None, environ).worker.port == 12
    assert load(None, environ).auth.mode == "none"
    assert load(None, environ | {"LIGHTERMAN_AUTH_MODE": "signature"}).auth.mode == "signature"


def test_every_kind_of_value_as_text() -> None:
    environ = {
        "LIGHTERMAN_AUTH_CHECK_URL": " Off ",
        "LIGHTERMAN_MODEL_COMMAND": '["serve", "--name", "a, b"]',
        "LIGHTERMAN_MODEL_READY_LOG": "Application startup complete., Connected ,",
        "LIGHTERMAN_MODEL_ENV": '{ A = "1", B = "two" }',
        "LIGHTERMAN_MODEL_URL": "http://127.0.0.1:1/",
        "LIGHTERMAN_BENCHMARK_PAYLOAD": "{ input = { prompt = 'x', n = 3 } }",
        "LIGHTERMAN_WORKER_LOG_FORMAT": "json",
        "LIGHTERMAN_MODEL_PROBE_EVERY_S": "1e1",
        "LIGHTERMAN_MODEL_START_TIMEOUT_S": "inf",
    }
    with pytest.raises(SettingsError, match="no route is configured"):
        load(None, environ)
    del environ["LIGHTERMAN_MODEL_COMMAND"], environ["LIGHTERMAN_MODEL_URL"]
    got = load(None, environ | {"MODEL_LOG": "/var/log/model.log"})
    assert got.auth.check_url is False
    assert got.model.ready_log == ["Application startup complete.", "Connected"]
    assert got.model.env == {"A": "1", "B": "two"}
    assert got.benchmark.payload == {"input": {"prompt": "x", "n": 3}}
    assert got.worker.log_format == "json"
    assert got.model.probe_every_s == 10.0
    assert got.model.start_timeout_s == float("inf")


@pytest.mark.parametrize("text", ["true", "TRUE", " Yes ", "1", "on"])
def test_what_means_true(text: str) -> None:
    assert load(None, {"USE_SSL": text}).tls.enabled is True
    assert load(None, {"UNSECURED": text}).auth.mode == "none"


@pytest.mark.parametrize("text", ["false", "No", "0", "off", ""])
def test_what_means_false(text: str) -> None:
    assert load(None, {"USE_SSL": text}).tls.enabled is False
    assert load(None, {"UNSECURED": text}).auth.mode == "signature"


@pytest.mark.parametrize("variable", ["USE_SSL", "UNSECURED", "LIGHTERMAN_TLS_ENABLED"])
def test_what_means_neither(variable: str) -> None:
    fault = faults(None, {variable: "maybe"})[f"${variable}"]
    assert "say true or false" in fault.message
    assert "'maybe'" in fault.message


def test_the_platforms_variables(tmp_path: Path) -> None:
    environ = {
        "CONTAINER_ID": "4711",
        "REPORT_ADDR": "https://run.vast.ai, https://cloud.vast.ai/api/v0/ ,",
        "MASTER_TOKEN": "geheim",
        "PYWORKER_VERSION": "2",
        "WORKER_PORT": "3100",
        "VAST_TCP_PORT_3100": "41234",
        "VAST_TCP_PORT_3000": "5",
        "PUBLIC_IPADDR": "192.0.2.7",
        "USE_SSL": "true",
        "UNSECURED": "true",
        "MODEL_HEALTH_ENDPOINT": "/health",
        "MODEL_LOG": "/var/log/model.log",
        "MODEL_NAME": "Qwen/Qwen3-8B",
        "BACKEND": "vllm",
        "HF_TOKEN": "not ours",
    }
    got = load(toml(tmp_path, MODEL), environ)
    assert got.worker.id == 4711
    assert got.engine.addresses == ["https://run.vast.ai", "https://cloud.vast.ai/api/v0"]
    assert got.engine.token == "geheim"
    assert secrets_of(got, environ) == ["geheim", "not ours"]
    assert got.engine.version == "2"
    assert got.worker.port == 3100
    assert got.worker.public_url == "https://192.0.2.7:41234"
    assert got.auth.mode == "none"
    assert got.model.health == "/health"
    assert got.model.log_file == "/var/log/model.log"
    assert got.model.name == "Qwen/Qwen3-8B"


def test_an_empty_variable_of_the_platform_says_nothing(tmp_path: Path) -> None:
    path = toml(tmp_path, '[worker]\nport = 7\n[engine]\naddresses = ["http://e:1"]\n')
    empty = dict.fromkeys(
        ("CONTAINER_ID", "REPORT_ADDR", "WORKER_PORT", "PUBLIC_IPADDR", "MODEL_LOG"), ""
    )
    got = load(path, empty)
    assert (got.worker.id, got.worker.port, got.worker.public_url) == (0, 7, "")
    assert got.engine.addresses == ["http://e:1"]


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"PUBLIC_IPADDR": "192.0.2.7"}, "http://192.0.2.7:3000"),
        ({"PUBLIC_IPADDR": " 192.0.2.7\n"}, "http://192.0.2.7:3000"),
        ({"PUBLIC_IPADDR": "2001:db8::1", "USE_SSL": "1"}, "https://[2001:db8::1]:3000"),
        ({"VAST_TCP_PORT_3000": "41234"}, ""),
        (
            {"PUBLIC_IPADDR": "1.2.3.4", "LIGHTERMAN_WORKER_PUBLIC_URL": "https://w/x/"},
            "https://w/x",
        ),
    ],
)
def test_the_public_url(environ: dict[str, str], url: str) -> None:
    assert load(None, environ).worker.public_url == url


def test_the_public_url_must_come_out_right() -> None:
    environ = {"PUBLIC_IPADDR": "192.0.2.7", "VAST_TCP_PORT_3000": "many"}
    assert "'many' is no port" in faults(None, environ)["$VAST_TCP_PORT_3000"].message
    assert "$VAST_TCP_PORT_3000" in faults(None, environ | {"VAST_TCP_PORT_3000": "70000"})
    assert "$PUBLIC_IPADDR" in faults(None, {"PUBLIC_IPADDR": "a b"})
    assert load(None, environ | {"LIGHTERMAN_WORKER_PUBLIC_URL": "http://w:1"})


def test_the_state_directory() -> None:
    assert load(None, {"XDG_STATE_HOME": "/x"}).worker.state_dir == "/x/lighterman"
    assert load(None, {"LIGHTERMAN_WORKER_STATE_DIR": "/y"}).worker.state_dir == "/y"
    relative = load(None, {"LIGHTERMAN_WORKER_STATE_DIR": "here"}).worker.state_dir
    assert relative == os.path.join(os.getcwd(), "here")
    assert os.path.isabs(load(None, {}).worker.state_dir)


def test_without_a_mapping_it_is_this_processs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_ID", "99")
    assert load(None).worker.id == 99


def test_a_route_in_full(tmp_path: Path) -> None:
    text = """
        [model]
        url = "http://127.0.0.1:18000/"
        [[route]]
        path = "/v1/chat/completions"
        upstream = "/v1/chat?x=1"
        workload = { field = "max_tokens", default = 256 }
        max_queue_time_s = inf
        [[route]]
        path = "/b"
        concurrency = 1
    """
    got = load(toml(tmp_path, text), {})
    first, second = got.route
    assert first.target == "/v1/chat?x=1"
    assert first.lane == "/v1/chat/completions"
    assert first.workload.default == 256.0
    assert first.max_queue_time_s == float("inf")
    assert (second.lane, second.target) == ("serial", "/b")
    assert got.model.url == "http://127.0.0.1:18000"  # paths are added to it


# ------------------------------------------------------------------ faults


def test_all_faults_are_told_at_once_each_with_its_line_and_a_hint(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """\
# a comment
[worker]
prot = 3000
processes = 0

[engine]
tries = "three"
[modle]
url = "x"
[auth]
mode = "open"
cache_entries = nan
[[route]]
path = "generate"
[[route]]
max_queue_tim_s = 3
workload = { feild = "x" }
[route.workload]
""".replace("[route.workload]\n", ""),
    )
    environ = {"LIGHTERMAN_QUEUE_MAX_JOB": "1", "CONTAINER_ID": "one"}
    got = faults(path, environ, nothing__here="1")
    assert set(got) == {
        *(f"worker.toml:{line}" for line in (3, 4, 7, 8, 11, 12, 14, 15, 16, 17)),
        "$LIGHTERMAN_QUEUE_MAX_JOB",
        "$CONTAINER_ID",
        "--set nothing.here",
    }
    assert got["worker.toml:3"].message == "unknown setting worker.prot"
    assert got["worker.toml:3"].hint == "did you mean port?"
    assert got["worker.toml:4"].hint == "Ingress processes sharing the client port."
    assert "not 0" in got["worker.toml:4"].message
    assert got["worker.toml:8"].hint == "did you mean model?"
    assert "worker.toml:11" in str(got["worker.toml:11"])
    assert "nan" in got["worker.toml:12"].message
    assert got["worker.toml:15"].hint == 'path = "/generate"'
    assert got["worker.toml:16"].hint == "did you mean max_queue_time_s?"
    assert got["$LIGHTERMAN_QUEUE_MAX_JOB"].hint == "did you mean LIGHTERMAN_QUEUE_MAX_JOBS?"
    assert "say a whole number" in got["$CONTAINER_ID"].message


def test_what_does_not_fit_together_is_told_beside_other_faults(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """\
[worker]
port = 3002
[model]
url = "https://127.0.0.1:18000"
ready_log = ["ready"]
health = "health"
[[route]]
path = "/a"
[[route]]
path = "/a"
[[route]]
path = "/what?"
upstream = "b"
[benchmark]
route = "/aa"
[engine]
addresses = ["run.example.com"]
[queue]
max_jobs = 0
""",
    )
    got = faults(path)
    assert set(got) == {
        *(f"worker.toml:{line}" for line in (4, 5, 6, 10, 12, 13, 15, 17, 19)),
        "worker.admin_port",
    }
    assert got["worker.toml:10"].message == "the path /a is configured twice"
    assert got["worker.toml:15"].hint == "did you mean /a?"
    assert got["worker.toml:4"].message == "model.url must be http://host:port"


def test_rules_are_not_asked_about_what_is_wrong_already(tmp_path: Path) -> None:
    """A model.url that was refused is not said to be missing as well; what it has nothing to do
    with is judged.
    """
    path = toml(
        tmp_path,
        """\
[model]
url = 3
health = "health"
[[route]]
path = "/a"
[benchmark]
route = "/b"
[engine]
addresses = ["run.example.com"]
[worker]
port = "x"
http_port = 3002
""",
    )
    found = faults(path)
    assert set(found) == {*(f"worker.toml:{n}" for n in (2, 3, 7, 9, 11)), "worker.admin_port"}
    assert "are the same port 3002" in found["worker.admin_port"].message


A_ROUTE = '[[route]]\npath = "/a"\n'
A_MODEL = '[model]\nurl = "http://127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("text", "environ", "flags"),
    [
        (A_MODEL + '[[route]]\npath = 3\n[benchmark]\nroute = "/b"\n', {}, {}),
        (A_MODEL + A_ROUTE + 'concurrncy = 3\n[benchmark]\nroute = "/a"\n', {}, {}),
        ('[model]\nurll = "http://127.0.0.1:1"\n' + A_ROUTE, {}, {}),
        ('[model]\ncommand = 3\nready_log = ["ready"]\n', {}, {}),
        ('[modle]\nurl = "http://127.0.0.1:1"\n' + A_ROUTE, {}, {}),
        (A_MODEL + '[[routs]]\npath = "/a"\n[benchmark]\nroute = "/a"\n', {}, {}),
        (A_ROUTE, {"LIGHTERMAN_MODEL_URLL": "http://127.0.0.1:1"}, {}),
        (A_ROUTE, {}, {"model__urll": "http://127.0.0.1:1"}),
        (
            "[engine]\ntries = 0\n[worker]\nport = 3100\n",
            {"CONTAINER_ID": "1", "MASTER_TOKEN": "t", "VAST_TCP_PORT_3100": "3100"},
            {},
        ),
        ("[tls]\nenabled = true\ncert = 3\n", {}, {}),
        (A_MODEL + 'command = ["./serve"]\ncwd = 3\n' + A_ROUTE, {}, {}),
        (A_MODEL.replace('1"', '1"\nenv = { API_KEY = 3 }') + '[[route]]\npath = "/?"\n', {}, {}),
    ],
)
def test_one_fault_makes_no_second_one(
    tmp_path: Path, text: str, environ: dict[str, str], flags: dict[str, str]
) -> None:
    assert len(faults(toml(tmp_path, text), environ, files=True, **flags)) == 1


def test_a_wrong_route_of_a_worker_py_makes_no_second_fault() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {}, given={"route": [{"path": 7}], "model": {"url": "http://127.0.0.1:1"}})
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    "text",
    [
        '[model]\nenv = { API_KEY = "s3kret-value", N = 3 }\nhealth = "/h s3kret-value"\n',
        '[model]\ncommand = ["m", "--api-key=s3kret-value", 3]\nhealth = "/h s3kret-value"\n',
        '[engine]\ntoken = "s3kret-value\\u0000"\naddresses = ["https://e/?t=s3kret-value"]\n',
    ],
)
def test_a_secret_that_was_refused_is_shown_by_no_rule(tmp_path: Path, text: str) -> None:
    """What is not kept could not be masked in the words about other settings."""
    found = faults(toml(tmp_path, text))
    assert found and "s3kret" not in str(found)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h:1/prefix", "no path"),
        ("http://h:1//", "no path"),
        ("http://h:1?x", "must end with the path"),
        ("http://h:1#x", "must end with the path"),
        ("http://u:p@h:1", "user name"),
        ("http://h:0", "http://host:port"),
        ("http://h:99999", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://", "http://host:port"),
        ("h:1", "http://host:port"),
        ("http://h\n:1", "blank"),
        ("http://h :1", "blank"),
        ("unix://tmp/s", "http://host:port"),
        ("unix:///tmp/s t", "blank"),
    ],
)
def test_a_model_url_is_a_scheme_a_host_and_a_port(url: str, says: str) -> None:
    assert says in str(faults(None, {"LIGHTERMAN_MODEL_URL": url})["$LIGHTERMAN_MODEL_URL"])


@pytest.mark.parametrize("url", ["http://h", "http://h:1", "http://h:1/", "http://[::1]:8000/"])
def test_a_last_slash_of_a_url_is_taken_away(tmp_path: Path, url: str) -> None:
    path = toml(tmp_path, '[[route]]\npath = "/a"\n')
    assert load(path, {"LIGHTERMAN_MODEL_URL": url}).model.url == url.rstrip("/")


@pytest.mark.parametrize("health", ["/health?all=1", "http://127.0.0.1:9/h?x=1", ""])
def test_a_health_path_or_url(health: str) -> None:
    assert load(None, {"LIGHTERMAN_MODEL_HEALTH": health}).model.health == health


@pytest.mark.parametrize("health", ["health", "ftp://h", "/a b", "/a\r\nHost: x"])
def test_what_is_neither(health: str) -> None:
    assert set(faults(None, {"MODEL_HEALTH_ENDPOINT": health})) == {"$MODEL_HEALTH_ENDPOINT"}


def test_what_is_missing(tmp_path: Path) -> None:
    path = toml(tmp_path, '[model]\ncommand = ["serve"]\n')
    assert set(faults(path)) == {"model.url", "route"}
    assert set(faults(toml(tmp_path, '[[route]]\npath = "/a"\n'))) == {"model.url"}
    assert "worker.toml:2" in faults(toml(tmp_path, '[benchmark]\nroute = "/a"\n'))
    path = toml(tmp_path, '[worker]\npublic_url = "example"\n')
    assert "worker.toml:2" in faults(path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[worker]\nport = = 3\n", 0, "is not valid TOML"),
        ("a = " + "[" * 5000, 0, "nested too deeply"),
        ("port = 3\n", 1, "unknown section [port]"),
        ("\nworker = 3\n", 2, "worker is not a section"),
        ("[[worker]]\nport = 3\n", 1, "worker is not a section"),
        ('"\\u0077orker" = 3\n', 0, "worker is not a section"),
        ("[route]\npath = '/a'\n", 1, "[route] is not a list"),
        ("route = [3]\n", 1, "[route] is not a list"),
        ("worker.port = 'x'\n", 1, "worker.port"),
        ("worker = { id = 1, port = 'x' }\n", 1, "worker.port"),
        ("[worker]\n'port' = 'x'\n", 2, "worker.port"),
        ("[model.env]\nA = 3\n", 1, "model.env"),
        ("[benchmark]\npayload = [\n  [1],\n]\nruns = 0\n", 5, "benchmark.runs"),
        ("[model]\nname = '''\n[worker]\n'''\n[worker]\nport = -1\n", 6, "worker.port"),
        ("[benchmark]\npayload = { x = [nan] }", 2, "is nan"),
        ("[benchmark]\npayload" + ".a" * 50 + " = 1", 2, "levels deep"),
        (f"[worker]\nid = {2**63}", 2, "64 bits"),
        ("[worker]\nid = " + "9" * 5000, 0, "is not valid TOML"),
        ('[model]\nname = "a\\u0000b"', 2, "NUL"),
        ("[tls]\nenabled = 1\n", 2, "Expected `bool`, not 1"),
        ("[restart]\nbeat_s = 1979-05-27\n", 2, "restart.beat_s"),
    ],
)
def test_odd_files(tmp_path: Path, text: str, line: int, message: str) -> None:
    got = faults(toml(tmp_path, text))
    place = f"worker.toml:{line}" if line else "worker.toml"
    assert message in got[place].message


def test_the_line_of_a_fault_among_several_routes_with_tables_of_their_own(tmp_path: Path) -> None:
    text = """\
[[route]]
path = "/a"
[route.workload]
field = "x"
[[route]]  # the second
path = "/b"
[route.workload]
default = 0
[[ route ]]
concurrency = -1
path = "/c"
"""
    assert set(faults(toml(tmp_path, text))) == {"worker.toml:7", "worker.toml:10"}


def test_a_file_that_is_not_there_or_not_readable(tmp_path: Path) -> None:
    assert faults(tmp_path / "none.toml")["none.toml"].message == "there is no such file"
    (tmp_path / "latin.toml").write_bytes(b'[model]\nname = "\xe4"\n')
    assert "cannot be read" in faults(tmp_path / "latin.toml")["latin.toml"].message
    (tmp_path / "dir").mkdir()
    assert "cannot be read" in faults(tmp_path / "dir")["dir"].message
    with pytest.raises(SettingsError, match="cannot be read"):
        load(Path("a\0b"), {})


def test_text_that_no_process_can_be_given() -> None:
    environ = {"MODEL_NAME": "a\udcffb", "LIGHTERMAN_MODEL_CWD": "/a\0b"}
    got = faults(None, environ)
    assert "not UTF-8" in got["$MODEL_NAME"].message
    assert "NUL" in got["$LIGHTERMAN_MODEL_CWD"].message


def test_flags_and_variables_of_routes_do_not_exist() -> None:
    got = faults(None, {"LIGHTERMAN_ROUTE_PATH": "/a"}, route__path="/a")
    assert set(got) == {"$LIGHTERMAN_ROUTE_PATH", "--set route.path"}


def test_our_own_marks_are_no_settings() -> None:
    marks = {"LIGHTERMAN_RUN": "1", "LIGHTERMAN_CHILD": "x", "LIGHTERMAN_HANDOFF": "/x"}
    assert load(None, marks) == load(None, {})


SECRET = "s3cr3t-t0ken"


@pytest.mark.parametrize(
    ("text", "environ", "flags"),
    [
        (f'[engine]\ntoken = ["{SECRET}"]\n', {}, {}),
        (f'[engine]\ntoken = "{SECRET}\\u0000"\n', {}, {}),
        (f'[engine]\ntokn = "{SECRET}"\n', {}, {}),
        (f'[engine]\ntoken = "{SECRET}\n', {}, {}),
        (f"[engine]\ntoken = {SECRET}\n", {}, {}),
        (f'[[engine]]\ntoken = "{SECRET}"\n', {}, {}),
        ("", {"MASTER_TOKEN": f"{SECRET}\udcff"}, {}),
        ("", {"LIGHTERMAN_ENGINE_TOKN": SECRET}, {}),
        ("", {"REPORT_ADDR": f"https://user:{SECRET}@run.example.com"}, {}),
        ("", {"REPORT_ADDR": f"ftp://{SECRET}@x"}, {}),
        ("", {"MASTER_TOKEN": SECRET, "CONTAINER_ID": "x"}, {}),
        ("", {}, {"engine.token": f"{SECRET}\0"}),
        ("", {}, {"engine.tokens": SECRET}),
    ],
)
def test_a_secret_is_in_no_faults_text(
    tmp_path: Path, text: str, environ: dict[str, str], flags: dict[str, str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(toml(tmp_path, text), environ, flags)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.faults)


def test_a_long_value_is_shown_short() -> None:
    fault = faults(None, {"LIGHTERMAN_WORKER_PORT": "x" * 10_000})["$LIGHTERMAN_WORKER_PORT"]
    assert len(str(fault)) < 300


# ------------------------------------------------------------------ the reference


def test_every_setting_has_a_description_and_a_name_of_its_own() -> None:
    every = settings_sources.fields()
    assert len(every) > 80
    assert all(field.description.endswith((".", ")")) for field in every)
    assert len({field.own_variable for field in every}) == len(every)
    variables = [field.variable for field in every if field.variable]
    assert len(set(variables)) == len(variables)
    by_path = {field.path: field for field in every}
    assert by_path["engine.token"].secret
    # or may hold one: the private half of a key, --api-key, HF_TOKEN
    secret = [field.path for field in every if field.secret]
    assert secret == ["auth.clients", "engine.token", "model.command", "model.env"]
    assert by_path["worker.port"].variable == "WORKER_PORT"
    assert by_path["worker.port"].own_variable == "LIGHTERMAN_WORKER_PORT"
    assert by_path["worker.port"].default == 3000
    assert by_path["route.path"].default == ""
    assert by_path["model.command"].default == []
    assert settings_sources.sections()["route"] is RouteSettings


# ------------------------------------------------------------------ the hand-off


def handoff(directory: Path, settings: Settings) -> Handoff:
    return Handoff("run", str(directory), 1, settings)


def test_the_handoff_is_private_whole_and_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODEL + "max_queue_time_s = inf\n[benchmark]\npayload = { a = [1, 2.5, 'x'] }\n"
    settings = load(toml(tmp_path, text), {"MASTER_TOKEN": "geheim"})
    old_mask = os.umask(0)
    try:
        path = settings_sources.write_handoff(handoff(tmp_path, settings))
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    monkeypatch.setenv(settings_sources.HANDOFF_VARIABLE, path)
    assert settings_sources.read_handoff() == handoff(tmp_path, settings)
    again = handoff(tmp_path, load(None, {}))
    assert settings_sources.write_handoff(again) == path
    assert settings_sources.read_handoff() == again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["handoff.msgpack", "worker.toml"]


def test_a_child_without_a_handoff_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(settings_sources.HANDOFF_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match="python -m supervisor"):
        settings_sources.read_handoff()
    path = tmp_path / "handoff.msgpack"
    monkeypatch.setenv(settings_sources.HANDOFF_VARIABLE, str(path))
    with pytest.raises(SettingsError, match="cannot be read"):
        settings_sources.read_handoff()
    for content in (b"", b"\xc1", b"\x81\xa2\xff\xfe\x01", b"\x80"):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match="cannot be read"):
            settings_sources.read_handoff()


def test_only_who_may_know_it_inherits_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_TOKEN", "geheim")
    monkeypatch.setenv("LIGHTERMAN_ENGINE_TOKEN", "geheim")
    monkeypatch.setenv("HF_TOKEN", "the model's own")
    kept = settings_sources.inherited_environment(secret_variables=False)
    assert "geheim" not in kept.values()
    assert kept["HF_TOKEN"] == "the model's own"
    assert kept["PATH"] == os.environ["PATH"]
    assert settings_sources.inherited_environment(secret_variables=True) == dict(os.environ)
    assert os.environ["MASTER_TOKEN"] == "geheim"


def test_secrets_are_known_by_their_names(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        '[model]\nurl = "http://127.0.0.1:9"\nenv = { HF_TOKEN = "hf_abcdefgh" }\n'
        'command = ["serve", "--api-key", "sk-12345678", "--auth-token=tk-12345678",'
        ' "--max-tokens", "100000000", "--tokenizer", "some-tokenizer", "--key"]\n'
        '[[route]]\npath = "/a"\n',
    )
    environ = {"OPENAI_API_KEY": "sk-abcdefgh", "DEBUG_TOKEN": "yes", "KEYBOARD": "a-long-layout"}
    assert set(secrets_of(load(path, {}), environ)) == {
        "hf_abcdefgh", "sk-12345678", "tk-12345678", "sk-abcdefgh",
    }  # fmt: skip


#: Secrets, of any characters; one that begins like a flag is taken for that.
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=8).filter(
    lambda value: len(set(value)) > 2 and not value.startswith("--")
)
LINES = (
    "serve --api-key {}", "serve --api-key={};exec x", "HF_TOKEN={} serve", "export API_KEY={}&&x",
    "(serve --apikey {})>/log", "serve --api-key \\\n {} | tee",
)  # fmt: skip


@given(VALUES, st.sampled_from(LINES), st.booleans())
def test_secrets_within_an_item_are_known_however_they_are_quoted(
    value: str, line: str, deeper: bool
) -> None:
    """``sh -c`` takes a whole command line, which may hold another one."""
    line = line.format(shlex.quote(value))
    if deeper:
        line = f"exec bash -c {shlex.quote(line)}"
    settings = Settings(model=ModelSettings(command=["sh", "-c", line]))
    assert value in secrets_of(settings, {})


@given(st.text())
def test_any_command_line_can_be_taken_apart(line: str) -> None:
    secrets_of(Settings(model=ModelSettings(command=["sh", "-c", line])), {})


@pytest.mark.parametrize(
    "line",
    [
        "# don't\nserve --api-key 'abcd1234'",
        "cat <<EOF\nAPI_KEY=abcd1234\nEOF",
        "serve --api-key $'abcd1234'",
        "serve --api-key abcd\\\n1234",
        """serve --config '{"api_key": "abcd1234"}'""",
        "x: it's\napi_key: abcd1234",
    ],
)
def test_secrets_are_known_where_no_shell_would_read_the_line_so(line: str) -> None:
    settings = Settings(model=ModelSettings(command=["sh", "-c", line]))
    assert "abcd1234" in secrets_of(settings, {})


def test_what_only_looks_like_a_secret_is_none() -> None:
    command = ["x", "--no-api-key", "--tensor-parallel-size", "2", "--end-token", "</think>",
               "--key", "========"]  # fmt: skip
    assert secrets_of(Settings(model=ModelSettings(command=command)), {}) == []


def test_what_an_item_holds_is_the_value_as_it_is() -> None:
    """No shell takes its quotes away."""
    command = ["vllm", "--api-key=(abcdef)", "--hf-token", "'abc123'"]
    found = secrets_of(Settings(model=ModelSettings(command=command)), {})
    assert {"(abcdef)", "'abc123'"} <= set(found)


@pytest.mark.parametrize(
    "command", ["vllm serve X --api-key s3kret-value", "API_KEY=s3kret-value vllm", "K=s3kret-v"]
)
def test_a_command_line_in_one_item_is_not_shown(command: str) -> None:
    """It is no program's name, and may hold what nobody may read."""
    fault = faults(None, {"LIGHTERMAN_MODEL_COMMAND": command}, files=True)[
        "$LIGHTERMAN_MODEL_COMMAND"
    ]
    assert "there is no program" in fault.message and "item of its own" in fault.hint
    assert "s3kret" not in str(fault)


def test_what_the_environment_says_of_signatures_beats_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, '[auth]\nmode = "none"\n')
    assert load(path, {"UNSECURED": "false"}).auth.mode == "signature"
    assert load(path, {}).auth.mode == "none"


def test_an_instance_has_a_port_that_was_mapped() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {"PUBLIC_IPADDR": "192.0.2.1", "WORKER_PORT": "0"})
    (fault,) = caught.value.faults
    assert fault.place.endswith("WORKER_PORT") and "mapped" in fault.message


def test_an_instance_has_an_engine_even_where_none_is_named() -> None:
    assert load(None, {"CONTAINER_ID": "7", "MASTER_TOKEN": "t"}).engine.addresses == [
        "https://run.vast.ai"
    ]
    assert load(None, {"MASTER_TOKEN": "t"}).engine.addresses == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[worker]\nport = 3002\n", "worker.admin_port"),
        ("[worker]\nport = 3100\n", "engine.local_port"),
        ('[model]\nurl = "http://localhost:3000"\n[[route]]\npath = "/a"\n', "worker.toml:2"),
    ],
)
def test_one_port_has_one_owner(tmp_path: Path, text: str, place: str) -> None:
    ((where, fault),) = faults(toml(tmp_path, text)).items()
    assert "are the same port" in fault.message and where == place


def test_what_is_unknown_does_not_hide_what_else_is_wrong(tmp_path: Path) -> None:
    path = toml(tmp_path, "[zzz]\na = 1\n[worker]\nport = 3002\n")
    found = faults(path, {"LIGHTERMAN_QQQ": "1"})
    assert set(found) == {"worker.toml:1", "$LIGHTERMAN_QQQ", "worker.admin_port"}
    assert all(fault.hint for fault in found.values())


def test_a_running_worker_keeps_the_route_that_it_is_measured_on() -> None:
    running = msgspec.structs.replace(
        Settings(route=[RouteSettings(path="/a")]), benchmark=BenchmarkSettings(route="/a")
    )
    assert unreloadable(running, running) == []
    (fault,) = unreloadable(running, Settings())
    assert "/a" in fault.message


def test_a_model_server_may_listen_on_a_socket_file(tmp_path: Path) -> None:
    path = toml(tmp_path, '[model]\nurl = "unix:///run/model.sock"\n[[route]]\npath = "/a"\n')
    assert load(path, {}).model.url == "unix:///run/model.sock"


def test_what_a_worker_py_amounts_to_beats_the_platform_and_nothing_else(tmp_path: Path) -> None:
    given = {
        "model": {"url": "http://127.0.0.1:1", "log_file": "/theirs", "health": "/theirs"},
        "route": [{"path": "/a", "prepare": True}],
    }
    environ = {"MODEL_LOG": "/platform", "LIGHTERMAN_MODEL_HEALTH": "/ours"}
    flags = {"hooks.file": "/x/worker.py"}
    got = load(None, environ, flags, given=given)
    assert (got.model.log_file, got.model.health) == ("/theirs", "/ours")
    assert got.route[0].prepare
    with pytest.raises(SettingsError, match=r"/x/worker.py: model.url: Expected"):
        load(None, environ, flags, given={"model": {"url": 7}})
    with pytest.raises(SettingsError, match=r"/x/worker.py: /a: the path /a is configured twice"):
        load(None, environ, flags, given={**given, "route": [{"path": "/a"}] * 2})
    with pytest.raises(SettingsError, match=r"route.path"):
        load(None, environ, flags, given={**given, "route": [{"path": "a"}]})
    assert load(None, {"MODEL_LOG": "/x", **environ}, flags, given={}).route == []


@pytest.mark.parametrize(
    "text",
    [
        '[model]\nurl = "http://127.0.0.1:1"\n[[route]]\npath = "/a"\nhosted = true\n',
        '[model]\nurl = "http://127.0.0.1:1"\nlifecycle = true\n[[route]]\npath = "/a"\n',
        '[model]\nurl = "http://127.0.0.1:1"\n[benchmark]\nroute = "/a"\nsampled = true\n'
        '[[route]]\npath = "/a"\n',
    ],
)
def test_functions_need_a_file_that_they_are_in(tmp_path: Path, text: str) -> None:
    (fault,) = faults(toml(tmp_path, text)).values()
    assert "needs functions of a worker.py" in fault.message


KEY = "JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs="


def test_clients_that_sign_themselves(tmp_path: Path) -> None:
    text = f'[auth]\nclients = {{ alice = "{KEY}" }}\n'
    assert load(toml(tmp_path, text), {}).auth.clients == {"alice": KEY}
    variable = {"LIGHTERMAN_AUTH_CLIENTS": f'{{ b-1_B = "{KEY}" }}'}
    assert load(None, variable).auth.clients == {"b-1_B": KEY}


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        (f'{{ "" = "{KEY}" }}', "no name of a client"),
        (f'{{ "a b" = "{KEY}" }}', "no name of a client"),
        (f'{{ "{"a" * 65}" = "{KEY}" }}', "no name of a client"),
        ('{ alice = "" }', "the key of alice"),
        (f'{{ alice = "{KEY[:-1]}" }}', "the key of alice"),
        (f'{{ alice = "{KEY}\\n" }}', "the key of alice"),
        ('{ alice = "é" }', "the key of alice"),
        ('{ alice = "c2hvcnQ=" }', "the key of alice"),
        ('"MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50"', "auth.clients"),
        ('["MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50"]', "auth.clients"),
    ],
)
def test_clients_that_could_not_sign(tmp_path: Path, clients: str, says: str) -> None:
    found = faults(toml(tmp_path, f"[auth]\nclients = {clients}\n"))
    (fault,) = found.values()
    assert list(found) == ["worker.toml:2"] and says in fault.message
    assert "MC4C" not in str(fault)  # somebody may have put the private half there


def test_no_fault_shows_a_secret_that_is_known_from_elsewhere(tmp_path: Path) -> None:
    environ = {"MASTER_TOKEN": "m4ster-of-the-harbour", "HF_TOKEN": "hf_harbour"}
    text = (
        '["m4ster-of-the-harbour"]\n[worker]\nhf_harbour = 1\n'
        'state_dir = ["m4ster-of-the-harbour"]\n'
        '[model]\ncommand = "serve --api-key k3y-of-mine"\nenv = "A_KEY=k3y-of-mine"\n'
    )
    told = "\n".join(map(str, faults(toml(tmp_path, text), environ).values()))
    assert told.count("***") == 3 and "model.command" in told and "model.env" in told
    assert not any(word in told for word in ("m4ster", "hf_harbour", "k3y"))
