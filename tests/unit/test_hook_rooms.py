"""What a configuration of a worker.py amounts to, and one call into it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend_adapter.hook_messages import Prepared, Refused
from backend_adapter.messages import FilePart
from ingress.envelope import decode_unsigned
from ingress.hooks import calls, names
from ingress.hooks.config import (
    BenchmarkConfig,
    ConfigurationError,
    HandlerConfig,
    LogActionConfig,
    WorkerConfig,
)
from ingress.hooks.describe import describe, fingerprint, ignored
from ingress.hooks.handlers import build, workload_of
from ingress.hooks.payload import AuthData, EndpointHandler, JsonDataException, LogAction
from ingress.hooks.threads import MAX_THREADS, HookThreads
from ingress.hooks.worker import Worker
from tests.kit.wait import wait_until_async

HOSTED = "unix:///hosted"


def amounts(config: WorkerConfig, **options: Any) -> dict[str, Any]:
    return describe(config, build(config), options, HOSTED)


def model(**changes: Any) -> WorkerConfig:
    return WorkerConfig(model_server_url="http://127.0.0.1", model_server_port=18000, **changes)


def test_names_order_and_defaults_are_those_that_people_use() -> None:
    assert list(inspect.signature(WorkerConfig).parameters) == [
        "model_server_url", "model_server_port", "model_log_file", "benchmark_data", "handlers",
        "model_healthcheck_url", "benchmark_route", "log_action_config", "max_sessions",
        "lifecycle",
    ]  # fmt: skip
    assert list(inspect.signature(HandlerConfig).parameters) == [
        "route", "healthcheck", "allow_parallel_requests", "max_queue_time", "benchmark_config",
        "handler_class", "payload_class", "request_parser", "response_generator",
        "workload_calculator", "is_remote_dispatch", "remote_function",
    ]  # fmt: skip
    handler, benchmark = HandlerConfig("/a"), BenchmarkConfig()
    assert (handler.allow_parallel_requests, handler.max_queue_time) == (False, 30.0)
    assert (benchmark.runs, benchmark.concurrency, benchmark.do_warmup) == (8, 10, True)
    assert WorkerConfig().max_sessions == 10
    actions = LogActionConfig(on_load=["a"], on_error=["b"], on_info=["c"]).log_actions
    assert actions == [
        (LogAction.ModelLoaded, "a"), (LogAction.ModelError, "b"), (LogAction.Info, "c"),
    ]  # fmt: skip


def test_a_configuration_as_settings() -> None:
    config = model(
        model_log_file="/log",
        model_healthcheck_url="health",
        handlers=[
            HandlerConfig("/a", max_queue_time=None, allow_parallel_requests=True),
            HandlerConfig("/b", max_queue_time=0, workload_calculator=len),
            HandlerConfig("/c", request_parser=dict, response_generator=calls.read),  # type: ignore[arg-type]
        ],
        log_action_config=LogActionConfig(on_load=["up"], on_error=["down"], on_info=["so"]),
    )
    values = amounts(config, host="127.0.0.1")
    assert values == {
        "worker": {"host": "127.0.0.1"},
        "limits": {"sessions": 10},
        "model": {
            "url": "http://127.0.0.1:18000", "error_log": ["down"], "info_log": ["so"],
            "health": "/health", "log_file": "/log", "ready_log": ["up"],
        },
        "benchmark": {},
        "route": [
            {"path": "/a", "max_queue_time_s": math.inf, "concurrency": 0, "prepare": False,
             "hosted": False},
            {"path": "/b", "max_queue_time_s": 0.0, "concurrency": 1, "prepare": True,
             "hosted": False},
            {"path": "/c", "max_queue_time_s": 30.0, "concurrency": 1, "prepare": True,
             "hosted": True},
        ],
    }  # fmt: skip
    assert ignored({"host": "x", "port": 1, "backlog": 2}) == ["backlog", "port"]


@pytest.mark.parametrize(
    ("config", "url"),
    [
        (WorkerConfig("http://h:1"), "http://h:1"),
        (WorkerConfig("127.0.0.1", 5001), "http://127.0.0.1:5001"),
        (WorkerConfig("http://h/", 1), "http://h:1"),
        (WorkerConfig(handlers=[HandlerConfig("/a", remote_function=len)]), HOSTED),
    ],
)
def test_where_the_model_server_is(config: WorkerConfig, url: str) -> None:
    assert amounts(config)["model"]["url"] == url


def test_a_health_path_is_never_asked_of_functions() -> None:
    """It is a path of whatever else listens at the URL that is written there."""
    only = [HandlerConfig("/a", remote_function=len)]
    for given, health in (
        (model(handlers=only, model_healthcheck_url="up"), "http://127.0.0.1:18000/up"),
        (model(handlers=only, model_healthcheck_url="http://h:2/up"), "http://h:2/up"),
        (WorkerConfig(handlers=only, model_healthcheck_url="/up"), None),
        (model(handlers=[*only, HandlerConfig("/b")], model_healthcheck_url="/up"), "/up"),
    ):
        assert amounts(given)["model"].get("health") == health


def test_one_text_in_place_of_a_list_is_that_text() -> None:
    logs = LogActionConfig(on_load="up now", on_error="down", on_info="so")  # type: ignore[arg-type]
    told = amounts(model(model_log_file="/log", log_action_config=logs))["model"]
    assert told["ready_log"] == ["up now"]
    assert (told["error_log"], told["info_log"]) == (["down"], ["so"])


def test_the_log_is_needed_only_where_nothing_else_tells() -> None:
    actions = LogActionConfig(on_load=["up"])
    with pytest.raises(ConfigurationError, match="model_log_file"):
        amounts(model(log_action_config=actions))
    healthy = model(log_action_config=actions, model_healthcheck_url="http://h:2/up")
    assert "ready_log" not in amounts(healthy)["model"]
    alive = model(log_action_config=actions, model_log_file="/log", lifecycle=asyncio.Lock())
    assert amounts(alive)["model"].get("lifecycle") and "ready_log" not in amounts(alive)["model"]
    inner = model(handlers=[HandlerConfig("/a", healthcheck="/h")])
    assert amounts(inner)["model"]["health"] == "/h"


def test_the_benchmark() -> None:
    how = BenchmarkConfig(dataset=[{"a": 1}], runs=2, concurrency=None, do_warmup=False)
    config = model(handlers=[HandlerConfig("/a", benchmark_config=how), HandlerConfig("/b")])
    assert amounts(config)["benchmark"] == {
        "route": "/a", "payloads": [{"a": 1}], "sampled": True, "runs": 2, "concurrency": 10,
        "warmup": False,
    }  # fmt: skip
    for made in ([{"a": object()}], [{"a": None}], [{"a": (1,)}], [{"a": "x" * 70_000}]):
        how = BenchmarkConfig(dataset=made)
        config = model(handlers=[HandlerConfig("/a", benchmark_config=how)])
        assert "payloads" not in amounts(config)["benchmark"]
    older = model(handlers=[HandlerConfig("/b")], benchmark_route="/b", benchmark_data=[{"x": 1}])
    assert amounts(older)["benchmark"]["route"] == "/b"


@pytest.mark.parametrize(
    "handlers",
    [
        [HandlerConfig("a")],
        [HandlerConfig(7)],  # type: ignore[arg-type]
        ["/a"],
        [HandlerConfig("/a"), HandlerConfig("/a")],
        [HandlerConfig("/a", is_remote_dispatch=True)],
        [HandlerConfig("/a", max_queue_time="long")],  # type: ignore[arg-type]
        [HandlerConfig("/a", workload_calculator=42)],  # type: ignore[arg-type]
        [HandlerConfig("/a", payload_class={})],  # type: ignore[arg-type]
        [HandlerConfig("/a", benchmark_config=BenchmarkConfig())],
        [HandlerConfig("/a", benchmark_config=BenchmarkConfig([{}], runs=0))],
        [HandlerConfig("/a", benchmark_config=BenchmarkConfig(generator=[]))],  # type: ignore[arg-type]
        [HandlerConfig("/a", handler_class=int.__class__)],
    ],
)
def test_what_cannot_work_is_said_at_once(handlers: Any) -> None:
    with pytest.raises(ConfigurationError):
        Worker(model(handlers=handlers))


def test_an_endpoint_that_each_request_decides_is_said_at_once() -> None:
    class Dynamic(EndpointHandler[Any]):
        current: str | None = None

        @property
        def endpoint(self) -> str:
            return self.current  # type: ignore[return-value]

        @property
        def healthcheck_endpoint(self) -> str | None:
            return None

        @classmethod
        def payload_cls(cls) -> type[Any]:
            return object

        async def generate_client_response(self, client_request: Any, model_response: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ConfigurationError, match="'/proxy' has the endpoint None"):
        Worker(model(handlers=[HandlerConfig("/proxy", handler_class=Dynamic)]))
    Dynamic.current = "/generate"
    assert Worker(model(handlers=[HandlerConfig("/proxy", handler_class=Dynamic)])).hooked


def test_a_worker_takes_a_configuration() -> None:
    with pytest.raises(TypeError, match="WorkerConfig"):
        Worker({"handlers": []})  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="python -m supervisor"):
        asyncio.run(Worker(model()).run_async())


def test_a_measured_capacity_holds_until_something_changes() -> None:
    def count_a(payload: dict[str, Any]) -> float:
        return 1.0 + len(payload)

    def count_b(payload: dict[str, Any]) -> float:
        return 2.0 + len(payload)

    def of(count: Any, environ: dict[str, str]) -> str:
        how = BenchmarkConfig(dataset=[{}])
        handler = HandlerConfig("/a", benchmark_config=how, workload_calculator=count)
        config = model(handlers=[handler])
        return fingerprint(config, build(config), environ)

    first = of(count_a, {"MODEL_NAME": "m", "HOME": "/x"})
    assert first == of(count_a, {"MODEL_NAME": "m", "HOME": "/y"})
    others = [
        of(count_b, {"MODEL_NAME": "m"}),
        of(count_a, {"MODEL_NAME": "n"}),
        of(count_a, {"MODEL_NAME": "m", "VLLM_ARGS": "--fast"}),
    ]
    assert first not in others and len(set(others)) == 3


# ------------------------------------------------------------------ one call


def ask(handler: HandlerConfig, payload: Any) -> Prepared | Refused:
    hooked = build(model(handlers=[handler]))[handler.route]
    return calls.prepare(hooked, 5, json.dumps({"payload": payload}).encode())[0]


def test_a_payload_that_is_only_looked_at_goes_on_as_it_came() -> None:
    handler = HandlerConfig("/a", workload_calculator=lambda d: d["n"])
    assert ask(handler, {"n": 3}) == Prepared(5, 3.0, untouched=True)
    taking = HandlerConfig("/a", workload_calculator=lambda d: d.pop("n"))
    answer = ask(taking, {"n": 3, "m": 1})
    assert isinstance(answer, Prepared) and (answer.body, answer.workload) == (b'{"m": 1}', 3.0)


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    """As it does for the envelope, whose payload goes on where the hooks only looked at theirs."""
    first, last = b'{"n":9,"n":8}', b'{"n":1,"n":3}'
    body = b'{"payload":%b,"payload":%b}' % (first, last)
    hooked = build(model(handlers=[HandlerConfig("/a", workload_calculator=lambda d: d["n"])]))
    assert calls.prepare(hooked["/a"], 5, body)[0] == Prepared(5, 3.0, untouched=True)
    assert bytes(decode_unsigned(body).payload) == last
    taking = HandlerConfig("/a", request_parser=lambda d: {"m": d["n"]})
    answer = calls.prepare(build(model(handlers=[taking]))["/a"], 5, body)[0]
    assert isinstance(answer, Prepared) and answer.body == b'{"m": 3}'


def test_a_body_whose_client_has_left_is_no_fault_of_the_hooks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooked = build(model(handlers=[HandlerConfig("/a")]))["/a"]
    gone = FilePart(str(tmp_path / "gone"), 0, 5)
    answer, payload = calls.prepare(hooked, 5, b"", gone)
    assert isinstance(answer, Refused) and payload is None
    assert answer.kind == "internal" and str(tmp_path) not in answer.message
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "kind", "said", "extra"),
    [
        (JsonDataException({"a": "missing"}), "invalid_parameter", "a: missing",
         {"payload": {"a": "missing"}}),
        (JsonDataException("all wrong"), "invalid_parameter", "all wrong",
         {"payload": "all wrong"}),
        (JsonDataException({"a": {1, 2}}), "invalid_parameter", "a: ", {"payload": {"a": [1, 2]}}),
        (JsonDataException({"a": object()}), "invalid_parameter", "a: ", {}),
        (ValueError("too long"), "invalid_parameter", "too long", {}),
        (ValueError("x" * 9999), "invalid_parameter", "xxx", {}),
        (RuntimeError("secret"), "hook_failed", "RuntimeError", {}),
        (KeyError("k"), "hook_failed", "KeyError", {}),
        (ValueError("half \ud800"), "invalid_parameter", "half ?", {}),
        (JsonDataException({"a": "\ud800"}), "invalid_parameter", "a: ?", {}),
        (SystemExit(3), "hook_failed", "SystemExit", {}),
    ],
)  # fmt: skip
def test_what_a_client_is_told_of_a_raising_hook(
    error: BaseException, kind: str, said: str, extra: dict[str, Any]
) -> None:
    def parse(payload: dict[str, Any]) -> dict[str, Any]:
        raise error

    answer = ask(HandlerConfig("/a", request_parser=parse), {})
    assert isinstance(answer, Refused)
    assert answer.kind == kind and said in answer.message and len(answer.message) < 600
    assert "secret" not in answer.message
    assert calls.extra_of(answer) == extra
    assert msgspec.msgpack.encode(answer), "it can be sent"


def test_what_is_no_payload_is_refused() -> None:
    assert ask(HandlerConfig("/a", request_parser=dict), [1]) == Refused(
        5, "invalid_parameter", "data: payload must be a dictionary",
        msgspec.json.encode({"payload": {"data": "payload must be a dictionary"}}),
    )  # fmt: skip
    answer = ask(HandlerConfig("/a", request_parser=lambda d: {"x": object()}), {})
    assert isinstance(answer, Refused) and "no JSON" in answer.message


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -1, "x", None])
def test_a_workload_that_is_none_is_the_default(said: Any) -> None:
    handler = HandlerConfig("/a", workload_calculator=lambda d: said)
    hooked = build(model(handlers=[handler]))["/a"]
    payload = hooked.handler.payload_cls().from_json_msg({})
    assert workload_of(payload, "/a") == 100.0


def test_samples_come_from_dataset_or_generator() -> None:
    def sample(how: BenchmarkConfig) -> Prepared | Refused:
        config = model(handlers=[HandlerConfig("/a", benchmark_config=how)])
        return calls.sample(build(config)["/a"], 5)

    generated = sample(BenchmarkConfig(generator=lambda: {"n": 1}))
    assert isinstance(generated, Prepared) and generated.body == b'{"n": 1}'
    drawn = sample(BenchmarkConfig(dataset=[{"n": 2}]))
    assert isinstance(drawn, Prepared) and drawn.body == b'{"n": 2}'
    failing = sample(BenchmarkConfig(generator=lambda: {}["k"]))
    assert isinstance(failing, Refused)


@pytest.mark.parametrize(
    "value", [b"raw", ("a", "b"), ("a", 7, "t"), ("a", b"", "t\r\nx: y"), [b"raw"]]
)
def test_what_is_no_form_field_is_refused(value: Any) -> None:
    with pytest.raises(calls.BadHook, match="multipart field 'f'"):
        calls.multipart({"f": value})


def test_names_in_a_form_cannot_break_out() -> None:
    body, head = calls.multipart({'a"\r\nx': ("f\r\n.txt", b"1", "")})
    assert b'name="a%22%0D%0Ax"; filename="f%0D%0A.txt"' in body
    assert head.startswith(b"content-type: multipart/form-data; boundary=")


def test_auth_data_names_what_is_missing() -> None:
    with pytest.raises(JsonDataException) as caught:
        AuthData.from_json_msg({"cost": 1})
    assert set(caught.value.message) == {"endpoint", "reqnum", "request_idx", "signature", "url"}
    whole = {field.name: 1 for field in dataclasses.fields(AuthData)}
    assert AuthData.from_json_msg({**whole, "more": 2}).url == 1  # type: ignore[comparison-overlap]


# ------------------------------------------------------------------ threads


def test_calls_run_one_after_the_other_unless_one_takes_long() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        threads, done, gate = HookThreads(loop), [], threading.Event()
        names: list[str] = []

        def quick(number: int) -> int:
            names.append(threading.current_thread().name)
            return number

        running, most = [0], [0]

        def counted() -> None:
            running[0] += 1
            most[0] = max(most[0], running[0])
            running[0] -= 1

        for _ in range(50):
            threads.submit(counted, done.append)
        await wait_until_async(lambda: len(done) == 50)
        assert most == [1]
        done.clear()
        threads.submit(lambda: gate.wait(60), done.append)
        for number in range(5):
            threads.submit(lambda number=number: quick(number), done.append)
        await wait_until_async(lambda: len(done) == 5)
        assert done == [0, 1, 2, 3, 4]
        assert threads.waiting == 0 and not threads.stuck(0.0)
        gate.set()
        await wait_until_async(lambda: len(done) == 6)
        threads.close()

    asyncio.run(main())


def test_threads_that_never_return_are_seen() -> None:
    async def main() -> None:
        threads, gate = HookThreads(asyncio.get_running_loop()), threading.Event()
        outcomes: list[Any] = []
        for _ in range(MAX_THREADS + 1):
            threads.submit(lambda: gate.wait(60), outcomes.append)
        await wait_until_async(lambda: threads.stuck(0.1))
        assert threads.waiting == 1
        gate.set()
        await wait_until_async(lambda: len(outcomes) == MAX_THREADS + 1)
        threads.close()

    asyncio.run(main())


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("installed", [True, False])
def test_what_files_import_are_our_classes(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the real package is there; afterwards everything is as it was."""
    if not installed:
        monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    before = {name: module for name, module in sys.modules.items() if name.startswith("vastai")}
    ours: dict[str, Any] = {"Worker": Worker, "WorkerConfig": WorkerConfig}
    types: dict[str, Any] = {"JsonDataException": JsonDataException}
    undo = names.install(names.Names(names.contents(ours, types, {}), ours))
    try:
        real = importlib.import_module("vastai")
        assert real.Worker is Worker and real.WorkerConfig is WorkerConfig
        assert importlib.import_module("vastai_sdk").Worker is Worker
        server = importlib.import_module("vastai.serverless.server.worker")
        assert server.Worker is Worker
        lib = importlib.import_module("vastai.serverless.server.lib.data_types")
        assert lib.JsonDataException is JsonDataException
        older = importlib.import_module("vastai_sdk.serverless.server.lib.data_types")
        assert older.JsonDataException is JsonDataException
    finally:
        undo()
    after = {name: module for name, module in sys.modules.items() if name.startswith("vastai")}
    assert after == before


def test_a_module_that_ours_hides_is_named(tmp_path: Path) -> None:
    (tmp_path / "reporter.py").write_text("WORDS = 1")
    file = tmp_path / "worker.py"
    file.write_text("from vastai import *\nWorker(WorkerConfig('http://127.0.0.1:1')).run()\n")
    looked = subprocess.run(
        [sys.executable, "-m", "ingress.hooks.look", str(file), str(tmp_path / "out")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert looked.returncode == 0, looked.stderr
    assert "the module reporter beside it is hidden by ours" in looked.stderr
    assert "supervisor" not in looked.stderr


@pytest.mark.parametrize("done", ["sys.stdout.close()", "sys.stderr = None", "sys.stdout = 7"])
def test_the_process_ends_whatever_the_file_did_to_its_streams(done: str) -> None:
    text = f"import sys; from ingress.hooks.__main__ import end; {done}; end(7)"
    assert subprocess.run([sys.executable, "-c", text], timeout=60).returncode == 7
