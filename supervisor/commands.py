"""What the command line may ask of a running supervisor, and what it is answered.

Every request gets one reply, JSON text; one that makes no sense gets the reason. It decides nothing
about the run: that is ``process.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from supervisor import lifecycle
from supervisor.messages import CommandReply, CommandRequest
from supervisor.settings_sources import SettingsError
from supervisor.status import status_of

if TYPE_CHECKING:
    from supervisor.member import Member
    from supervisor.process import Supervisor


def obey(supervisor: Supervisor, request: CommandRequest) -> CommandReply:
    """Do it, and say how that went."""
    try:
        match request.verb, request.args:
            case "status", []:
                return _reply(status_of(supervisor))
            case "restart", [name]:
                _member(supervisor, name).feed(lifecycle.Restart())
                return _reply(f"restarting {name}")
            case (("drain" | "stop"), []):
                supervisor.stop("drain asked for")
                return _reply("draining; it stops when it is done")
            case "reload", []:
                return _reload(supervisor)
            case "logs", [name, cursor]:
                return _reply(_logs(supervisor, name, cursor))
            case verb, args:
                return _reply(f"cannot do {verb!r} with {args!r}", ok=False)
    except LookupError as error:
        return _reply(str(error.args[0]), ok=False)


def _reload(supervisor: Supervisor) -> CommandReply:
    try:
        left = supervisor.reload()
    except SettingsError as error:
        return _reply(str(error), ok=False)
    script = supervisor.plan.settings.hooks.file
    told = "settings taken"
    if left:
        told = f"routes taken; start the worker anew for what changed in {', '.join(left)}"
    if script:
        told += f"; {script} is read again by: restart hooks"
    return _reply(told)


def _reply(body: Any, *, ok: bool = True) -> CommandReply:
    return CommandReply(ok, msgspec.json.encode(body).decode())


def _member(supervisor: Supervisor, name: str, *more: str) -> Member:
    members = supervisor.members
    if name not in members:
        foreign = name == "model" and supervisor.plan.configured
        said = "something else starts and keeps the logs of" if foreign else "there is no"
        raise LookupError(f"{said} {name!r}; there are: {', '.join((*members, *more))}")
    return members[name]


def _logs(supervisor: Supervisor, name: str, cursor: str) -> dict[str, Any]:
    """Lines from ``cursor`` on, and where to go on reading."""
    ring = (
        supervisor.log.ring
        if name == "supervisor"
        else _member(supervisor, name, "supervisor").ring
    )
    lines, after = ring.since(int(cursor) if cursor.isdecimal() else 0)
    return {"lines": [supervisor.mask(line) for line in lines], "cursor": after}
