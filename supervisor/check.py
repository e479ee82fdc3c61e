"""``check``: are the settings right, and what would run with them? Secrets are not shown."""

from __future__ import annotations

import shlex
import sys

from supervisor import settings_sources
from supervisor.exit_codes import ExitCode
from supervisor.log_lines import masker
from supervisor.plan import Plan
from supervisor.settings import RouteSettings
from supervisor.settings_sources import SettingsError
from supervisor.source import Source
from supervisor.tables import Tables


def check(source: Source, color: bool) -> int:
    """Say what would run, or every fault; returns the exit code."""
    path = source.path
    try:
        plan = source.plan()
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


def _facts(plan: Plan, where: str) -> list[tuple[str, str]]:
    settings, mask = plan.settings, masker(settings_sources.secrets(plan.settings))
    model, benchmark = settings.model, settings.benchmark
    command = shlex.join(map(mask, model.command)) or "(something else starts it)"
    if benchmark.max_perf:
        capacity = f"{benchmark.max_perf:g} work/s, as the settings say"
    elif benchmark.route:
        capacity = f"measured on {benchmark.route}: {benchmark.runs} × {benchmark.concurrency}"
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
        ("model", model.url),
        ("command", command),
        ("health probe", model.health or "(connects to its port)"),
        ("capacity", capacity),
        ("state", settings.worker.state_dir),
    ]
    if model.env:
        facts.insert(8, ("environment", ", ".join(model.env)))  # names; values may be secret
    return [(name, mask(text)) for name, text in facts]


def _route(route: RouteSettings) -> tuple[str, ...]:
    work, wait_s = route.workload, route.max_queue_time_s
    return (
        route.path,
        route.target,
        f"{work.field}, or {work.default:g}" if work.field else f"{work.default:g}",
        route.lane,
        str(route.concurrency) if route.concurrency else "no limit",
        f"{wait_s:g} s" if wait_s else "busy",
        f"{route.timeout_s:g} s" if route.timeout_s else "none",
    )
