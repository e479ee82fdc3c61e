"""``check``: are the settings right, and what would run with them? Secrets are not shown."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from supervisor import settings_sources
from supervisor.exit_codes import ExitCode
from supervisor.log_lines import masker
from supervisor.plan import Plan, python_module
from supervisor.settings import RouteSettings, Settings
from supervisor.settings_sources import Fault, SettingsError
from supervisor.source import Source
from supervisor.tables import Tables


def check(source: Source, color: bool) -> int:
    """Say what would run, or every fault; returns the exit code."""
    path = source.script or source.path
    try:
        plan = source.plan()
        if source.script:
            plan = source.plan_again(plan, amounts_to(source.script, plan))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return ExitCode.SETTINGS
    tables = Tables(color)
    where = path or ("the embedded demo" if plan.embedded else "the environment")
    tables.facts(_facts(plan, str(where)))
    tables.table(
        ("route", "model server", "workload", "lane", "at once", "429 after", "timeout"),
        [_route(route) for route in plan.settings.route],
    )
    print("the settings are right")
    return ExitCode.CLEAN


def amounts_to(script: str, plan: Plan) -> dict[str, Any]:
    """What a worker.py says the worker is: it is executed, in a process of its own.

    Raises:
        SettingsError: it says nothing, or not in time; the text names its line.
    """
    limit_s = plan.settings.hooks.start_timeout_s
    print(f"running {script} to see what it amounts to", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "out")
        environ = settings_sources.inherited_environment(secret_variables=False)
        argv = python_module(environ, "ingress.hooks.look", script, out)
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=limit_s)[1]
        except subprocess.TimeoutExpired:
            said = f"{script}: it has not run its Worker within {limit_s:g} s"
        finally:
            with suppress(ProcessLookupError):  # and what the file has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        try:
            values: dict[str, Any] = msgspec.msgpack.decode(Path(out).read_bytes())
        except OSError:
            place, _, text = said.strip().rpartition("\n")[2].partition(": ")
            raise SettingsError([Fault(place, text or "it says nothing")]) from None
    return values


def _facts(plan: Plan, where: str) -> list[tuple[str, str]]:
    settings, mask = plan.settings, masker(settings_sources.secrets(plan.settings))
    model, benchmark, clients = settings.model, settings.benchmark, settings.auth.clients
    command = shlex.join(map(mask, model.command)) or "(something else starts it)"
    lanes = [route.concurrency for route in settings.route if route.path == benchmark.route]
    at_once = min([benchmark.concurrency, *filter(None, lanes)])
    if benchmark.max_perf:
        capacity = f"{benchmark.max_perf:g} work/s, as the settings say"
    elif benchmark.sampled:
        capacity = f"measured on {benchmark.route}, with payloads of the file:"
        capacity += f" {benchmark.runs} × {at_once}"
    elif benchmark.route:
        capacity = f"measured on {benchmark.route}: {benchmark.runs} × {at_once}"
    else:
        capacity = "not measured (no benchmark.route)"
    local = " (local, started with the worker)" if plan.local_engine_port else ""
    facts = [
        ("settings", where),
        ("worker", f"{plan.worker_url} (listens on {settings.worker.host}:{settings.worker.port})"),
        ("health", plan.admin_url),
        ("engine", ", ".join(settings.engine.addresses) + local),
        ("token", "set" if settings.engine.token else "not set"),
        ("signatures", "checked" if settings.auth.mode == "signature" else "NOT checked"),
        *([("clients", f"sign, too: {', '.join(clients)}")] if clients else []),
        (
            "model",
            "functions of the file" if model.url == "unix:///worker.py" else model.url,
        ),
        *_of_script(settings),
        ("command", command),
        *(
            [("its output", f"written to {model.log_file}")]
            if model.command and model.log_file
            else []
        ),
        ("health probe", model.health or "(connects to its port)"),
        ("capacity", capacity),
        ("state", settings.worker.state_dir),
    ]
    if model.env:
        facts.insert(-3, ("environment", ", ".join(model.env)))  # names; values may be secret
    return [(name, mask(text)) for name, text in facts]


def _of_script(settings: Settings) -> list[tuple[str, str]]:
    """What a worker.py says besides, and nobody would look for elsewhere."""
    if not settings.hooks.file:
        return []
    model, facts = settings.model, []
    if model.lifecycle:
        facts.append(("loaded when", "the lifecycle of the file was entered"))
    elif model.ready_log:
        facts.append(("loaded when", f"{model.log_file} says: {' | '.join(model.ready_log)}"))
    if model.error_log:
        facts.append(("in error when", f"it says: {' | '.join(model.error_log)}"))
    most = settings.limits.sessions
    facts.append(("sessions", f"at most {most}" if most else "no limit"))
    if settings.worker.http_port > 0:
        facts.append(("their end", f"also on 127.0.0.1:{settings.worker.http_port}, plain HTTP"))
    return facts


def _route(route: RouteSettings) -> tuple[str, ...]:
    wait_s = route.max_queue_time_s
    return (
        route.path,
        f"the file, {route.target}" if route.hosted else route.target,
        _workload(route),
        route.lane,
        str(route.concurrency) if route.concurrency else "no limit",
        f"{wait_s:g} s" if wait_s else "busy",
        f"{route.timeout_s:g} s" if route.timeout_s else "none",
    )


def _workload(route: RouteSettings) -> str:
    if route.prepare:
        return "the file says"
    work = route.workload
    if not work.field:
        return f"{work.default:g}"
    return f"{work.field}, or {work.default:g}; at most {work.most:g}"
