"""Speaks to a running supervisor over its control socket: one request, one reply, one deadline.

Which run it is, the run lock of the state directory says. Every request makes its own connection
under a name of its own, so that two people may ask at once.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from supervisor import wire
from supervisor.child import CONTROL_SOCKET
from supervisor.messages import CommandReply, CommandRequest, FromSupervisor
from supervisor.run_lock import RunLockError, read_running

#: Seconds from connecting to the reply.
DEADLINE_S = 5.0


class ControlError(Exception):
    """The running worker could not be asked; the text says what to do."""


class NotRunning(ControlError):
    """No worker runs with this state directory."""


class NoAnswer(ControlError):
    """A worker runs and does not answer."""


class Refused(ControlError):
    """The worker answered that it cannot do this."""


def running(state_dir: str) -> dict[str, Any]:
    """What the running worker published: pid, runtime_dir, run_id and its URLs.

    Raises:
        NotRunning: there is none.
        ControlError: its lock may not be looked at.
    """
    try:
        facts = read_running(state_dir)
    except RunLockError as error:
        hint = "ask as the user who runs it, or name another directory: --state-dir"
        raise ControlError(f"{error} ({hint})") from None
    if facts is None:
        raise NotRunning(
            f"no worker runs with the state directory {state_dir}"
            " (start one: python -m supervisor; another directory: --state-dir)"
        )
    if "runtime_dir" not in facts:
        raise NoAnswer(f"the worker (pid {facts.get('pid')}) has only just begun: try again")
    return facts


def ask(state_dir: str, verb: str, args: list[str], deadline_s: float = DEADLINE_S) -> Any:
    """Ask the running worker and return its answer.

    Args:
        state_dir: its state directory.
        verb, args: see ``CommandRequest``.
        deadline_s: seconds until NoAnswer.

    Raises:
        NotRunning: there is no worker.
        NoAnswer: it does not answer.
        Refused: it says no, and why.
    """
    facts = running(state_dir)
    try:
        address = wire.ipc_address(facts["runtime_dir"], CONTROL_SOCKET)
        reply = asyncio.run(_exchange(address, CommandRequest(verb, args), deadline_s))
    except TimeoutError:
        raise NoAnswer(
            f"the worker (pid {facts.get('pid')}) did not answer within {deadline_s:g} s;"
            " its log says what it is doing"
        ) from None
    body = msgspec.json.decode(reply.body)
    if not reply.ok:
        raise Refused(str(body))
    return body


async def _exchange(address: str, request: CommandRequest, deadline_s: float) -> CommandReply:
    answer: asyncio.Future[CommandReply] = asyncio.get_running_loop().create_future()

    def heard(messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, CommandReply) and not answer.done():
                answer.set_result(message)

    name = f"cli-{os.getpid()}-{wire.draw_epoch():x}"

    def say() -> None:
        client.send(request)

    client = wire.Client(address, name, FromSupervisor, heard, on_up=say)
    try:
        async with asyncio.timeout(deadline_s):
            return await answer
    finally:
        client.close()
