"""The command line of the demo model server.

Responsible for what can be set and for refusing what makes no sense. It must not know what the
settings do.
"""

from __future__ import annotations

import argparse

from supervisor.demo.faults import AnyFault, help_text, parse_flag


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m supervisor.demo.model",
        description="A small model server with TGI's and OpenAI's API, and faults on request.",
        epilog="faults, for --fault KIND[:FIELD=VALUE,...] and POST /demo/fault"
        f' {{"kind": KIND, "FIELD": VALUE}}:\n{help_text()}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=18000, help="port; 0 picks a free one (%(default)s)")
    add("--model-name", default="harbour-markov", help="(%(default)s)")
    add("--tokens-per-second", type=_number, default=0.0, help="of each generation; 0: no limit")
    add("--first-token-ms", type=_number, default=0.0, help="before the first token")
    add("--slots", type=_positive, default=64, help="generations at once, others wait (64)")
    add("--load-seconds", type=_number, default=0.0, help="until /health answers 200")
    add(
        "--ready-line",
        default="INFO Application startup complete.",
        help="printed when loaded (%(default)s)",
    )
    add("--max-body-bytes", type=_positive, default=64 * 2**20, help="of a request (64 MiB)")
    add("--journal", help="append `received TAG PID` and `finished TAG PID` lines to this file")
    add("--fault", action="append", type=_fault, default=[], help="repeatable, see below")
    return parser


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1e9")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _fault(text: str) -> AnyFault:
    try:
        return parse_flag(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
