"""What ``init`` writes: a commented worker.toml for each model server that people run.

The facts of each server (port, ready line, error lines, health path) are data; one function words
them. Patterns that match harmless lines are left out on purpose: a bare ``Traceback`` belongs to
one bad request as often as to a dead server, and how a process that we start ends we see ourselves.

Pure: it returns text. It must not read or write files.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec


class Route(msgspec.Struct, frozen=True):
    """One path of a model server and how its work is counted."""

    path: str
    workload_field: str = ""
    default: float = 256
    serial: bool = False


class Server(msgspec.Struct, frozen=True):
    """What is known of one model server."""

    title: str
    port: int
    #: command line; empty: something else starts it
    command: tuple[str, ...]
    ready_log: tuple[str, ...]
    error_log: tuple[str, ...]
    routes: tuple[Route, ...]
    health: str = "/health"
    env: dict[str, str] = {}
    #: payload of the benchmark on the first route; None: it needs one of the user's own
    benchmark: dict[str, Any] | None = None
    note: str = ""


_MODEL = "Qwen/Qwen3-8B"
_PROMPT = "Write a story about a lighthouse keeper who repairs clocks."
_OPENAI = (Route("/v1/completions", "max_tokens"), Route("/v1/chat/completions", "max_tokens"))

SERVERS: dict[str, Server] = {
    "vllm": Server(
        "vLLM",
        18000,
        ("vllm", "serve", _MODEL, "--host", "127.0.0.1", "--port", "18000"),
        ("Application startup complete.",),
        ("RuntimeError: Engine",),
        _OPENAI,
        benchmark={"model": _MODEL, "prompt": _PROMPT, "max_tokens": 256},
    ),
    "tgi": Server(
        "Text Generation Inference",
        5001,
        ("text-generation-launcher", "--model-id", _MODEL, "--json-output",
         "--hostname", "127.0.0.1", "--port", "5001"),
        ('"message":"Connected","target":"text_generation_router"',),
        ("Error: WebserverFailed", "Error: DownloadError", "Error: ShardCannotStart"),
        (
            Route("/generate", "parameters.max_new_tokens"),
            Route("/generate_stream", "parameters.max_new_tokens"),
            Route("/v1/chat/completions", "max_tokens"),
        ),
        benchmark={"inputs": _PROMPT, "parameters": {"max_new_tokens": 256}},
        note="The ready line below is how it looks with --json-output.",
    ),
    "sglang": Server(
        "SGLang",
        18000,
        ("python3", "-m", "sglang.launch_server", "--model-path", _MODEL,
         "--host", "127.0.0.1", "--port", "18000"),
        ("The server is fired up and ready to roll!",),
        (),
        (*_OPENAI, Route("/generate", "sampling_params.max_new_tokens")),
        benchmark={"model": _MODEL, "prompt": _PROMPT, "max_tokens": 256},
    ),
    "llama.cpp": Server(
        "llama.cpp",
        18000,
        ("llama-server", "--model", "/models/model.gguf", "--host", "127.0.0.1",
         "--port", "18000"),
        ("model loaded",),
        ("error loading model", "failed to load model"),
        _OPENAI,
        benchmark={"prompt": _PROMPT, "max_tokens": 256, "cache_prompt": False},
    ),
    "ollama": Server(
        "Ollama",
        11434,
        ("ollama", "serve"),
        ("Listening on",),
        ("panic:", "level=FATAL"),
        (
            Route("/api/generate", "options.num_predict"),
            Route("/api/chat", "options.num_predict"),
            Route("/v1/chat/completions", "max_tokens"),
        ),
        health="/",
        env={"OLLAMA_HOST": "127.0.0.1:11434"},
        benchmark={
            "model": "qwen3:8b",
            "prompt": _PROMPT,
            "stream": False,
            "options": {"num_predict": 256},
        },
        note="It loads a model at the first request: pull it before the worker starts.",
    ),
    "comfyui": Server(
        "ComfyUI behind its API wrapper",
        18288,
        (),
        ("To see the GUI go to: ", "BACKENDS_READY"),
        (
            "MetadataIncompleteBuffer",
            "[ERROR] Provisioning Script failed",
            "BACKEND_UNRECOVERABLE",
        ),
        (Route("/generate/sync", default=100, serial=True),),
        note="The older wrapper says the first ready line, the newer one the second.",
    ),
}  # fmt: skip


def render(name: str) -> str:
    """The worker.toml for one of ``SERVERS``.

    Raises:
        KeyError: no such server.
    """
    server = SERVERS[name]
    lines = [
        f"# worker.toml for {server.title}. Check it with: python -m supervisor check",
        "# Every setting, with its default and unit: docs/settings.md",
    ]
    lines += [f"# {server.note}"] if server.note else []
    lines += ["", *_model(server), "", *_benchmark(server)]
    for route in server.routes:
        lines += ["", *_route(route)]
    return "\n".join(lines) + "\n"


def _model(server: Server) -> list[str]:
    lines = ["[model]"]
    if server.command:
        lines += [
            "# Started, watched and restarted by the worker. Leave it out if something else does.",
            f"command = {_array(server.command)}",
        ]
        lines += [f"env = {{ {k} = {_text(v)} }}" for k, v in server.env.items()]
    else:
        lines += [
            "# Something else starts it. To have the worker start and restart it, add:",
            '# command = ["program", "argument"]',
            "# Its log, which the worker follows ($MODEL_LOG goes before this).",
            'log_file = "/var/log/model.log"',
        ]
    lines += [
        f'url = "http://127.0.0.1:{server.port}"',
        f"health = {_text(server.health)}",
        "# It has loaded when a log line contains one of these.",
        f"ready_log = {_array(server.ready_log)}",
    ]
    if server.error_log:
        lines += [
            "# It is in error when a log line contains one of these: keep them narrow.",
            f"error_log = {_array(server.error_log)}",
        ]
    return lines


def _benchmark(server: Server) -> list[str]:
    path = server.routes[0].path
    if server.benchmark is None:
        return [
            "# Capacity, measured before the worker counts as ready: give a payload of your own,",
            "# or say what it is (workload per second).",
            "# [benchmark]",
            f"# route = {_text(path)}",
            "# payload = { }",
            "# max_perf = 100.0",
        ]
    return [
        "# Capacity, measured before the worker counts as ready.",
        "[benchmark]",
        f"route = {_text(path)}",
        f"payload = {_inline(server.benchmark)}",
    ]


def _route(route: Route) -> list[str]:
    lines = ["[[route]]", f"path = {_text(route.path)}"]
    if route.workload_field:
        lines.append("# How much work a request is: this field of its payload.")
        lines.append(
            f"workload = {{ field = {_text(route.workload_field)}, default = {route.default:g} }}"
        )
    else:
        lines.append("# Every request is the same amount of work.")
        lines.append(f"workload = {{ default = {route.default:g} }}")
    lines.append("# 429 with Retry-After when a request would wait longer.")
    lines.append("max_queue_time_s = 60")
    lines.append("# 0: the model server schedules; 1: one request at a time, first come first.")
    lines.append(f"concurrency = {int(route.serial)}")
    return lines


def _text(text: str) -> str:
    return f"'{text}'" if '"' in text else json.dumps(text)


def _array(texts: tuple[str, ...]) -> str:
    return f"[{', '.join(map(_text, texts))}]"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
