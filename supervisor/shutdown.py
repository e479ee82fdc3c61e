"""The order of the end: ingress, adapter, worker.py, model server, and the reporter last.

So the engine hears of every last outcome. Each group has its own deadline, after which its lives
kill what is left (``lifecycle.py``); a process that cannot even be killed is named and left behind.
It knows no socket and no request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from supervisor import lifecycle
from supervisor.client_port import ClientPort
from supervisor.member import Member
from supervisor.messages import ChildState
from supervisor.settings import Settings

#: Beyond the drain deadline, before a child is killed.
DRAIN_MARGIN_S = 3.0
#: Seconds that adapter and reporter have to end once nothing depends on them.
LAST_WORDS_S = 5.0
#: Beyond a group's deadline, for SIGKILL to do its work.
KILL_S = 5.0
_log = logging.getLogger("supervisor")


async def stop_in_order(
    members: Mapping[str, Member],
    settings: Settings,
    changed: asyncio.Event,
    reason: str,
    port: ClientPort | None,
) -> None:
    """Stop every member.

    Args:
        members: by name.
        changed: set whenever a member's state changed.
        reason: told to each of them.
        port: closed once no ingress is started any more that inherits it.
    """
    doors = [name for name in members if name.startswith("ingress")]
    order = [
        (doors, settings.worker.drain_s + DRAIN_MARGIN_S),
        (["backend_adapter"], LAST_WORDS_S),
        (["hooks"], settings.model.stop_timeout_s),  # its file may stop a model server itself
        (["model"], settings.model.stop_timeout_s),
        (["reporter"], LAST_WORDS_S),
        (list(members), LAST_WORDS_S),
    ]
    for names, deadline_s in order:
        group = [members[name] for name in names if name in members]
        if names == ["backend_adapter"]:
            await _returned(group, changed, _returns)
        elif names is doors and port is not None:
            await _returned(group, changed, _starts)
        for member in group:
            member.feed(lifecycle.Stop(deadline_s, reason))
        if names is doors and port is not None:
            port.close()
        try:
            async with asyncio.timeout(deadline_s + KILL_S):
                while not all(member.gone for member in group):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            left = [member.name for member in group if not member.gone]
            _log.error("cannot be killed, left behind: %s", ", ".join(left))


async def _returned(
    group: list[Member], changed: asyncio.Event, returns: Callable[[Member], bool]
) -> None:
    """Wait for those who are just being restarted.

    What a process keeps beyond its life only its successor can finish: the adapter's sessions, of
    whose end the model server is to hear; and who waits at the port for an ingress.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            while any(map(returns, group)):
                changed.clear()
                await changed.wait()


def _starts(member: Member) -> bool:
    """It died, or has ended, and another one comes."""
    starts = member.state is ChildState.STARTING and member.life.generation > 1
    return starts or member.state is ChildState.BACKOFF


def _returns(member: Member) -> bool:
    """Or it was told to end."""
    return _starts(member) or member.state is ChildState.STOPPING
