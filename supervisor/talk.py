"""The commands that talk to a running worker: status, restart, drain, reload, logs, ask."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from supervisor import control_client
from supervisor.control_client import ControlError, NotRunning
from supervisor.exit_codes import ExitCode
from supervisor.source import UsageError

#: Seconds between two looks at a log that is followed.
_FOLLOW_S = 0.3
_TONES = {"ready": "green", "starting": "yellow", "backoff": "red", "failed": "red"}


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


def say(state_dir: str, verb: str, args: list[str], done: str) -> int:
    """Have the worker do something; returns the exit code."""
    try:
        control_client.ask(state_dir, verb, args)
    except ControlError as error:
        return _say_error(error)
    print(done)
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
    except ControlError as error:
        return _say_error(error)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads; say nothing about stdout either
        return ExitCode.CLEAN


def ask(state_dir: str, args: argparse.Namespace) -> int:
    """Send one request as a client does; returns the exit code."""
    from supervisor import asking

    try:
        question = _question(state_dir, args)
    except ControlError as error:
        return _say_error(error)
    try:
        if args.json:
            asking.ask(question, asking.show_json, lambda text: None)
        else:
            asking.ask(question, asking.show_nothing, asking.write_now)
    except asking.AskError as error:
        print(f"ask: {error}", file=sys.stderr)
        return ExitCode.NOT_READY
    return ExitCode.CLEAN
