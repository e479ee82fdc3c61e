"""The commands that talk to a running worker: status, restart, drain, reload, logs, ask."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from supervisor import control_client
from supervisor.control_client import ControlError, NotRunning
from supervisor.exit_codes import ExitCode
from supervisor.messages import ChildState
from supervisor.source import UsageError

if TYPE_CHECKING:
    from supervisor.ask import Question

#: Seconds between two looks at a log that is followed.
_FOLLOW_S = 0.3


def status(state_dir: str, as_json: bool, color: bool) -> int:
    """Say how the worker is; returns 0 ready, 1 not ready, 2 not running."""
    try:
        told = control_client.ask(state_dir, "status", [])
    except ControlError as error:
        return _say_error(error)
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _show_status(told, color)
    return ExitCode.CLEAN if told["ready"] else ExitCode.NOT_READY


def say(state_dir: str, verb: str, args: list[str]) -> int:
    """Have the worker do something, and say what it answers; returns the exit code."""
    try:
        print(control_client.ask(state_dir, verb, args))
    except ControlError as error:
        return _say_error(error)
    return ExitCode.CLEAN


def logs(state_dir: str, name: str, lines: int, follow: bool) -> int:
    """Print a member's latest lines, and go on until Ctrl-C when they are followed."""
    try:
        told = control_client.ask(state_dir, "logs", [name, "0"])
        shown = told["lines"][-lines:] if lines else []
        while True:
            for line in shown:
                print(line)
            sys.stdout.flush()
            if not follow:
                return ExitCode.CLEAN
            time.sleep(_FOLLOW_S)
            told = control_client.ask(state_dir, "logs", [name, str(told["cursor"])])
            shown = told["lines"]
    except NotRunning as error:
        print(f"{error}; the logs of the last one are in {state_dir}/logs", file=sys.stderr)
        return ExitCode.NOT_RUNNING
    except ControlError as error:
        return _say_error(error)
    except BrokenPipeError:
        return _nobody_reads()


def ask(state_dir: str, args: argparse.Namespace) -> int:
    """Send one request as a client does; returns the exit code."""
    from supervisor.ask import AskError, show_json, show_nothing, walk, write_now

    try:
        question = _question(state_dir, args)
        if args.json:
            walk(question, show_json, lambda text: None)
        else:
            walk(question, show_nothing, write_now)
    except ControlError as error:
        return _say_error(error)
    except AskError as error:
        print(f"ask: {error}", file=sys.stderr)
        return ExitCode.NOT_READY
    except BrokenPipeError:
        return _nobody_reads()
    return ExitCode.CLEAN


def _nobody_reads() -> int:
    sys.stderr.close()  # say nothing about stdout either
    return ExitCode.CLEAN


def _question(state_dir: str, args: argparse.Namespace) -> Question:
    from supervisor.ask import Question, choose_route, make_payload

    known: dict[str, Any] = {}
    try:
        known = control_client.ask(state_dir, "status", [])
    except NotRunning:
        if not args.engine:
            raise
    engine = args.engine or known["urls"]["engine"]
    local = not args.engine and known["engine_local"]
    if local and known["model"]["state"] == ChildState.FAILED:
        raise ControlError(f"the model server has failed: {known['model']['reason']}")
    if not local and not (args.endpoint and args.api_key):
        raise UsageError(f"the engine {engine} is not local: give --endpoint NAME --api-key KEY")
    stream = not args.no_stream
    route = args.route or choose_route(known.get("routes", []), stream)
    return Question(
        engine=engine,
        endpoint=args.endpoint or "local",
        api_key=args.api_key or "",
        route=route,
        payload=_payload(args) or make_payload(route, args.text, args.max_tokens, stream),
        cost=float(args.max_tokens),
        local=local,
        watch=args.json,
        cafile=args.cacert,
    )


def _payload(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.payload is None:
        return None
    try:
        payload = json.loads(args.payload)
    except ValueError as error:
        raise UsageError(f"--payload is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise UsageError("--payload must be a JSON object")
    return payload


def _say_error(error: ControlError) -> int:
    print(error, file=sys.stderr)
    return ExitCode.NOT_RUNNING if isinstance(error, NotRunning) else ExitCode.NOT_READY


def _show_status(told: dict[str, Any], color: bool) -> None:
    from supervisor.tables import Tables

    tables = Tables(color)
    if told["ready"]:
        tables.line("● ready", "bold green")
    else:
        tables.line(f"○ not ready: {told['reason']}", "bold red")
    heads = ("name", "state", "pid", "up", "restarts", "why")
    rows = [
        (
            member["name"],
            member["state"],
            str(member["pid"] or ""),
            duration(member["uptime_s"]) if member["pid"] else "",
            str(member["restarts"]),
            member["reason"] or (member["last_exit"] if member["restarts"] else ""),
        )
        for member in told["members"]
    ]
    tables.table(heads, rows)
    tables.facts(_facts(told))


def _facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    queue, load, urls = told["queue"], told["load"], told["urls"]
    facts = [("worker", f"{urls['worker']}  pid {told['pid']}, up {duration(told['uptime_s'])}")]
    facts.append(("engine", urls["engine"] + (" (local)" if told["engine_local"] else "")))
    if not told["signatures"]:
        facts.append(("signatures", "NOT CHECKED: everyone who reaches the port may use the model"))
    facts.append(("health", urls["admin"]))
    facts.append(("model", f"{told['model']['url']}  {told['model']['state']}"))
    if queue:
        facts.append(("queue", f"{queue.get('waiting', 0)} wait, {queue.get('running', 0)} run"))
    if load:
        facts.append(("load", f"{load.get('load', 0):g} of {load.get('max_perf', 0):g} per second"))
        ago_s = load.get("last_post_s", -1)
        facts.append(("last report", "none yet" if ago_s < 0 else f"{ago_s:g} s ago"))
        error = load.get("error") or load.get("last_post_error")
        facts.append(("last error", str(error or "none")))
    own = told.get("own_log") or {"dropped_bytes": 0, "error": ""}  # an older worker's answer
    logs = [("supervisor", own["dropped_bytes"], 0, own["error"])]
    for each in told["members"]:
        counts = each["log_dropped_bytes"], each["log_cut_bytes"]
        logs.append((each["name"], *counts, each["log_error"]))
    for name, dropped, cut, error in logs:
        lost = ((dropped, "dropped"), (cut, "cut off lines"))
        said = ", ".join(f"{count:,} bytes {what}" for count, what in lost if count)
        if said:
            facts.append((f"log of {name}", said + (f"; now: {error}" if error else "")))
    strange = [f"{name} {count}" for name, count in told["malformed"].items() if count]
    if strange:
        facts.append(("dropped", "messages that are none of ours: " + ", ".join(strange)))
    return facts


def duration(seconds: float) -> str:
    """Seconds as people say them: ``4.2 s``, ``3 m 07 s``, ``5 h 12 m``, ``2 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest_s:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} m"
    return f"{hours // 24} d {hours % 24} h"
