"""Writes the pages of docs/ that are made from the code: ``python -m supervisor.reference [DIR]``.

Settings from the tree, exit codes from their list, the life of a child from its transition table.
A test compares the pages with what this would write, so neither can drift from the other.
"""

from __future__ import annotations

import math
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec

from supervisor import lifecycle
from supervisor.exit_codes import ExitCode
from supervisor.memory_budget import MIB, items, total_bytes
from supervisor.messages import ChildState
from supervisor.settings import Settings, Workload
from supervisor.settings_sources import Field, fields, sections

_MEMORY = """
The bodies, the unread answers and the spool are shared evenly by several ingress processes. Not
counted are the model server, a worker.py (below), the local engine (which runs where no engine is
named, to try the worker with), the reader of the GPUs (20 MB, where there are any), and the
kernel's own socket buffers and page cache, which it takes back when memory is short.

## Where a body is

A body longer than `limits.large_bytes` goes into a file as it comes, and so does one of 16 KiB when
half of `limits.buffered_bytes` is held. A file is mapped for as long as it takes to check it, and
is sent to the model server piece by piece, as fast as that takes it; so no process ever holds a
large body, however often it is sent again. Files are in `limits.spool_dir` (a disk; in a tmpfs they
would be memory), only this user can read them, and each goes with its request. A killed ingress's
files go when it is back, those of a whole run at its end, or before the next one starts.

A thread waits for the disk that a body is written to, never the loop. While the disk is slower than
the clients, they are read no further. What is read again, to check it and to send it on, mostly
comes from the system's page cache; where that had to let go of it, the process waits for the disk.
Large bodies that end together are checked one after the other, with everything else in between: 128
MiB take up to a second.

## At the limit

| what is full | the client gets |
|---|---|
| one body over `limits.body_bytes` | 413 `body_too_large` when the head has come; it is not kept |
| memory, the spool, or the disk | 503 `memory` with Retry-After, before the body is read |
| pipelined requests | the answer to the first, then the connection closes |
| answers that nobody reads | who has not read for longest is cut off |
| the queue | 429 `queue_full` with Retry-After; 503 `overloaded` when nothing more can run, too |

A body in chunks, whose length nobody has announced, is refused where the room ends.

A response that is complete gives its slot on the model server free although its client still reads,
for up to 128 responses at once; further ones keep theirs.

## With a worker.py

Its process reads the body of each request that its functions see. Bodies that wait for a function
hold at most `limits.buffered_bytes`, those of requests whose response it forms as much again, or
one body; beyond that, 503 `memory`. What its functions make of them is theirs.

An ingress that stands still is replaced within seconds; until then, what the model server answers
to its clients gathers in the backend_adapter, up to each stream's `limits.stream_credit_bytes`
(four times that, of a large answer that was read as it came).
"""
_MADE = "<!-- Written by `python -m supervisor.reference`. Change the code, not this page. -->\n"


def pages() -> dict[str, str]:
    """File name → text of every page that is made from the code."""
    return {
        "settings.md": settings_page(),
        "exit-codes.md": exit_codes_page(),
        "lifecycle.md": lifecycle_page(),
        "memory.md": memory_page(),
    }


def settings_page() -> str:
    """Every setting: type and bounds, default, variables, what it means."""
    out = [
        f"# Settings\n\n{_MADE}",
        "Settings come from `worker.toml`, then the environment, then the command line; the later"
        " one wins. Every fault is named at once, with its place: `python -m supervisor check`.\n",
        "- In the file: `[section]` and `name = value`; one `[[route]]` for each path.",
        "- In the environment: `LIGHTERMAN_<SECTION>_<NAME>`, for example"
        " `LIGHTERMAN_WORKER_PORT=3000`; some settings also have the platform's own variable,"
        " named below. Lists are separated by commas, or written as in TOML where an item holds a"
        """ comma or a blank (`LIGHTERMAN_MODEL_COMMAND='["vllm", "serve", "my-model"]'`); tables"""
        " are written as in TOML.",
        "- On the command line: `--set section.name=value`, repeatable.\n",
        'Routes are set in the file only. `UNSECURED=true` means `auth.mode = "none"`. The public'
        " URL is built from `PUBLIC_IPADDR` and `VAST_TCP_PORT_<port>` where those are set.\n",
    ]
    known = fields()
    for name, kind in sections().items():
        head = f"[[{name}]]" if name == "route" else f"[{name}]"
        out.append(f"## `{head}`\n\n{_first_line(kind)}\n")
        out += _table([field for field in known if field.section == name])
    out.append('## `workload` of a route\n\nA table: `workload = { field = "max_tokens" }`.\n')
    out += _table(_workload_fields())
    return "\n".join(out)


def memory_page() -> str:
    """What the worker holds at most, and what happens at each limit."""
    settings = Settings()
    out = [
        f"# Memory\n\n{_MADE}",
        "What clients send and do not read is bounded in bytes, most of it by settings. Under"
        " any flood, with the default settings and without TLS, the processes of the worker"
        f" together stay under **{math.ceil(total_bytes(settings) / MIB / 128) * 128} MiB**; at"
        " rest they take about 100. With TLS an open connection takes 20 KiB more, and up to half a"
        " MiB once it has carried a large body: that is not in these figures, and ends with it.\n",
        "| process | holds | limit | MiB by default |",
        "|---|---|---|---|",
        *(
            f"| {item.process} | {item.what} | {item.limit} | {math.ceil(item.bytes / MIB)} |"
            for item in items(settings)
        ),
        f"| together | | | {math.ceil(total_bytes(settings) / MIB)} |\n",
        _MEMORY.strip(),
        "",
    ]
    return "\n".join(out)


def _table(rows: list[Field]) -> list[str]:
    lines = ["| setting | type | default | variable | meaning |", "|---|---|---|---|---|"]
    for field in rows:
        variable = f"`{field.variable}`" if field.variable else ""
        cells = (
            f"`{field.name}`", _type_text(field.kind), _default_text(field), variable,
            field.description,
        )  # fmt: skip
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _workload_fields() -> list[Field]:
    hints = typing.get_type_hints(Workload, include_extras=True)
    found = []
    for info in msgspec.structs.fields(Workload):
        kind = hints[info.name]
        doc = next(m.description for m in get_args(kind)[1:] if isinstance(m, msgspec.Meta))
        found.append(Field("route", info.name, kind, info.default, doc or "", "", False))
    return found


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _type_text(kind: Any) -> str:
    bounds: list[str] = []
    while get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        bounds += [_bounds(meta) for meta in metas if isinstance(meta, msgspec.Meta)]
    origin = get_origin(kind)
    if origin is typing.Literal:
        name = " or ".join(f'`"{choice}"`' for choice in get_args(kind))
    elif origin is list:
        name = "list of text"
    elif origin is dict:
        name = "table"
    else:
        names = {str: "text", bool: "true or false", int: "whole number", float: "number"}
        name = names.get(kind, "table")
    return ", ".join([name, *filter(None, dict.fromkeys(bounds))])


def _bounds(meta: msgspec.Meta) -> str:
    if meta.pattern == "^/":
        return "begins with /"
    if meta.ge is not None:
        return f"{meta.ge} to {meta.le}" if meta.le is not None else f"at least {meta.ge}"
    if meta.gt is not None:
        return f"above {meta.gt}" + (f", at most {meta.le}" if meta.le is not None else "")
    return ""


def _default_text(field: Field) -> str:
    """As worker.toml would say it; empty where nothing is the default."""
    value = field.default
    if field.section == "route" and field.name == "path":
        return "(required)"
    if isinstance(value, Workload):
        return f"`{{ default = {value.default:g} }}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`' if value else ""
    return f"`{value}`" if value or isinstance(value, (int, float)) else ""


def exit_codes_page() -> str:
    """Every number that a process of ours ends with."""
    rows = [f"| {int(code)} | `{code.name}` | {code.doc} |" for code in ExitCode]
    out = [
        f"# Exit codes\n\n{_MADE}",
        "What `python -m supervisor` and its commands end with. Ctrl-C during a command that only"
        " looks gives 130, as in any shell.\n",
        "| code | name | meaning |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(out) + "\n"


_STATES = {
    ChildState.WAITING: "not started yet",
    ChildState.STARTING: "its process is being started, or runs and is not ready",
    ChildState.READY: "it does its work",
    ChildState.UNHEALTHY: "it runs and does not do its work, or is being killed for that",
    ChildState.STOPPING: "it was asked to end, for good or to be started again",
    ChildState.BACKOFF: "it died; it is started again after a delay",
    ChildState.STOPPED: "nothing of it is left, as asked",
    ChildState.FAILED: "it died more often than its budget allows, or can never start",
}


def lifecycle_page() -> str:
    """The states of a child and its whole transition table as a diagram."""
    states = [f"| `{state}` | {_STATES[state]} |" for state in ChildState]
    out = [
        f"# The life of a child\n\n{_MADE}",
        "The supervisor leads the model server, the local engine and each of our own processes"
        " through the same life. `python -m supervisor status` shows these states:\n",
        "| state | meaning |",
        "|---|---|",
        *states,
        "\nA state is what others are told. Inside, a life has finer phases, so that every rule"
        " is a row of one table; events that change nothing are left out here. `[budget spent]`"
        " is taken instead when the restart budget (`restart.budget` within `restart.window_s`)"
        " is used up, or at once where another try cannot help (there is no such program).\n",
        f"```mermaid\n{lifecycle.diagram()}```",
    ]
    return "\n".join(out) + "\n"


def main(directory: Path) -> None:
    """Write every page."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")
        print(directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
