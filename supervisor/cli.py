"""The command line: which command, which options, and the exit code. Commands lie elsewhere.

The first word that is no option names the command; where it names none it is the settings file, and
the worker is run. Whatever a command imports is imported when it is called: `status` must not pay
for what only the worker needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import supervisor
from supervisor.exit_codes import ExitCode
from supervisor.source import Source, UsageError

_PROGRAM = "python -m supervisor"
_WITH_VALUE = ("--set", "--port", "--state-dir", "--log-format", "--log-level")


class _Parser(argparse.ArgumentParser):
    """An argument parser that exits with the documented code."""

    def error(self, message: str) -> NoReturn:
        """The command line is wrong."""
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\n")


def _parser(name: str, about: str, epilog: str = "") -> _Parser:
    parser = _Parser(
        prog=f"{_PROGRAM} {name}".strip(),
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--state-dir", metavar="DIR", help="state directory of the worker (worker.state_dir)")
    add(
        "--set", metavar="SECTION.NAME=VALUE", action="append", default=[], dest="settings",
        help="set any setting; repeatable; beats file and environment",
    )  # fmt: skip
    add("--no-color", action="store_true", help="no colours (NO_COLOR says the same)")
    return parser


def _source(args: argparse.Namespace, file: str | None = None) -> Source:
    """The settings that the options name. Raises UsageError."""
    flags = {}
    for text in args.settings:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--set {text}: write SECTION.NAME=VALUE, as in worker.port=3000")
        flags[name.strip()] = value
    short = {
        "worker.state_dir": args.state_dir,
        "worker.port": getattr(args, "port", None),
        "worker.log_format": getattr(args, "log_format", None),
        "worker.log_level": getattr(args, "log_level", None),
    }
    return Source(file, flags | {name: value for name, value in short.items() if value is not None})


# ------------------------------------------------------------------------------- commands


def _run(argv: Sequence[str]) -> int:
    commands = "\n".join(f"  {name:<9} {about}" for name, (_, about) in COMMANDS.items())
    codes = "\n".join(f"  {int(code):<9} {code.doc}" for code in ExitCode)
    parser = _parser(
        "",
        "Runs the worker: starts the model server and everything that stands before it.",
        f"commands ({_PROGRAM} COMMAND --help):\n{commands}\n\nexit codes:\n{codes}",
    )
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="worker.toml or worker.py, or their directory;"
        " without it one of these here, else the environment, else a demo on loopback")  # fmt: skip
    add("--port", metavar="N", help="port that clients connect to (worker.port; 0: a free one)")
    add("--log-format", metavar="text|json", help="log lines for people, or JSON")
    add("--log-level", metavar="LEVEL", help="debug, info, warning or error; on a terminal, info"
        " lines are kept (logs NAME) and not shown")  # fmt: skip
    add("--version", action="version", version=f"lighterman {supervisor.__version__}")
    args = parser.parse_args(argv)
    if args.file is not None and not args.file.endswith((".toml", ".py")):
        _refuse_unknown(args.file)
    from supervisor.start import start

    return start(_source(args, args.file), _wants_color(args))


def _refuse_unknown(word: str) -> None:
    """A word that is neither a command nor looks like a file is a slip. Raises UsageError."""
    import difflib
    from pathlib import Path

    if not Path(word).exists():
        close = difflib.get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"see {_PROGRAM} --help"
        raise UsageError(f"{word!r} is neither a command nor a file; {hint}")


def _wants_color(args: argparse.Namespace) -> bool:
    from supervisor.settings_sources import inherited_environment

    environ = inherited_environment(secret_variables=False)
    return not (args.no_color or environ.get("NO_COLOR") or environ.get("TERM") == "dumb")


def _status(argv: Sequence[str]) -> int:
    parser = _parser("status", "Says how the running worker is: 0 ready, 1 not ready, 2 none runs.")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    args = parser.parse_args(argv)
    from supervisor import talk

    return talk.status(_source(args).state_dir(), args.json, _wants_color(args))


def _restart(argv: Sequence[str]) -> int:
    parser = _parser(
        "restart",
        "Restarts one member of the running worker.",
        "ingress and backend_adapter finish what runs first (worker.drain_s); meanwhile new\n"
        "requests wait. The model server is stopped at once: what runs on it is sent again, or\n"
        "fails where its answer had begun.",
    )
    parser.add_argument("name", help="as status lists it: model, ingress-0, backend_adapter …")
    args = parser.parse_args(argv)
    from supervisor import talk

    return talk.say(_source(args).state_dir(), "restart", [args.name])


def _drain(argv: Sequence[str]) -> int:
    args = _parser("drain", "Stops the running worker once its requests are done.").parse_args(argv)
    from supervisor import talk

    return talk.say(_source(args).state_dir(), "drain", [])


def _reload(argv: Sequence[str]) -> int:
    parser = _parser("reload", "Has the running worker read its settings and certificates again.")
    args = parser.parse_args(argv)
    from supervisor import talk

    return talk.say(_source(args).state_dir(), "reload", [])


def _logs(argv: Sequence[str]) -> int:
    parser = _parser("logs", "Shows the latest log lines of one member of the running worker.")
    add = parser.add_argument
    add("name", help="as status lists it: model, ingress-0, backend_adapter …; or supervisor")
    add("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    add("-n", "--lines", type=int, default=50, metavar="N", help="lines to begin with (50)")
    args = parser.parse_args(argv)
    from supervisor import talk

    return talk.logs(_source(args).state_dir(), args.name, max(args.lines, 0), args.follow)


def _ask(argv: Sequence[str]) -> int:
    parser = _parser("ask", "Sends one request the way a client does: route, post, stream.")
    add = parser.add_argument
    add("text", nargs="?", default="", metavar="TEXT", help="what to ask")
    add("--route", help="path on the worker; default: the first known one that takes text")
    add("--payload", metavar="JSON", help="send this instead of TEXT")
    add("--max-tokens", type=int, default=128, metavar="N", help="longest answer (128)")
    add("--no-stream", action="store_true", help="have the answer whole")
    add("--json", action="store_true", help="show each of the seven steps as a JSON object")
    add("--engine", metavar="URL", help="default: the engine of the running worker")
    add("--endpoint", metavar="NAME", help="of the engine; the local one takes any")
    add("--api-key", metavar="KEY", help="of the endpoint; the local engine takes any")
    add("--cacert", metavar="FILE", help="PEM file of certificates to trust")
    args = parser.parse_args(argv)
    if not args.text and args.payload is None:
        parser.error("give TEXT, or --payload JSON")
    if args.max_tokens < 1:
        parser.error("--max-tokens: give 1 or more")
    from supervisor import talk

    return talk.ask(_source(args).state_dir(), args)


def _check(argv: Sequence[str]) -> int:
    parser = _parser("check", "Checks the settings and says what would run: 0 good, 78 not.")
    parser.add_argument("file", nargs="?", metavar="FILE", help="worker.toml, as for running it")
    args = parser.parse_args(argv)
    from supervisor.check import check

    return check(_source(args, args.file), _wants_color(args))


def _init(argv: Sequence[str]) -> int:
    from supervisor import templates

    parser = _parser("init", "Writes a commented worker.toml for a model server that is known.")
    servers = ", ".join(templates.SERVERS)
    parser.add_argument("server", nargs="?", default="", help=servers)
    parser.add_argument(
        "--output", default="worker.toml", metavar="FILE", help="file to make (worker.toml)"
    )
    parser.add_argument(
        "--from", dest="script", metavar="FILE", help="a worker.py: write what it amounts to"
    )
    args = parser.parse_args(argv)
    name = args.server.lower()
    if args.script:
        text = _converted(_source(args, args.script))
    elif name in templates.SERVERS:
        text = templates.render(name)
    elif name:
        raise UsageError(f"no template for {args.server!r}; there are: {servers}")
    else:
        raise UsageError(f"init NAME: for which model server? there are: {servers}")
    try:
        with open(args.output, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{args.output} is there already: name another with --output") from None
    except OSError as error:
        raise UsageError(f"cannot write {args.output}: {error.strerror}") from None
    print(f"wrote {args.output}; look through it, then: {_PROGRAM} check {args.output}")
    return ExitCode.CLEAN


def _converted(source: Source) -> str:
    """The settings that a worker.py amounts to. Raises UsageError."""
    from supervisor.check import amounts_to
    from supervisor.convert import HasFunctions, as_toml
    from supervisor.settings_sources import SettingsError

    try:
        return as_toml(amounts_to(source.script, source.plan()), source.script)
    except (SettingsError, HasFunctions) as error:
        raise UsageError(str(error)) from None


def _help(argv: Sequence[str]) -> int:
    if argv and argv[0] not in (*COMMANDS, "--help"):
        raise UsageError(f"there is no command {argv[0]!r}; see {_PROGRAM} --help")
    command = COMMANDS[argv[0]][0] if argv and argv[0] in COMMANDS else _run
    return command(["--help"])


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "run": (_run, "runs the worker (also without this word)"),
    "ask": (_ask, "sends a request as a client does, and shows the answer"),
    "status": (_status, "how the running worker is"),
    "logs": (_logs, "the latest log lines of one member; -f goes on"),
    "restart": (_restart, "restarts one member"),
    "reload": (_reload, "reads settings and certificates again"),
    "drain": (_drain, "finishes what runs, then stops"),
    "check": (_check, "checks the settings and says what would run"),
    "init": (_init, "writes a worker.toml for a known model server"),
    "help": (_help, "this, or the help of one command"),
}


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command and what is left for it. Options may stand before the command."""
    index = 0
    while index < len(argv) and argv[index].startswith("-") and argv[index] != "--":
        index += 2 if argv[index] in _WITH_VALUE else 1
    if index < len(argv) and argv[index] in COMMANDS:
        return argv[index], [*argv[:index], *argv[index + 1 :]]
    return "run", list(argv)


def main(argv: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code."""
    name, rest = split(argv)
    try:
        return COMMANDS[name][0](rest)
    except UsageError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except KeyboardInterrupt:
        return 130
