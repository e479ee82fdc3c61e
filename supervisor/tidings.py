"""What our processes are told of each other: the model server's standing, deaths, the stop.

Each function says to whom which message goes; sending is ``process.py``'s matter. Law: whoever
connects late, or anew, is told everything that the others were told before.

It reads the supervisor and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from supervisor.messages import ChildNote, ChildState, Message, ModelState

if TYPE_CHECKING:
    from supervisor.member import Member
    from supervisor.process import Supervisor

#: (name of the process, message for it)
Tiding = tuple[str, Message]
_ENDING = (ChildState.STOPPING, ChildState.STOPPED)


def of_change(supervisor: Supervisor, member: Member) -> Iterator[Tiding]:
    """A member's state changed."""
    if member.name == "model":
        state = model_state(supervisor)
        yield "backend_adapter", state
        yield "reporter", state
    elif not (supervisor.stopping and member.state in _ENDING):
        # while the worker stops, that each of its members does is no news
        life = member.life
        reason = supervisor.mask(life.reason)
        yield "reporter", ChildNote(member.name, life.state, reason, life.restarts)


def of_stop(supervisor: Supervisor) -> Iterator[Tiding]:
    """The worker stops: the engine is to route elsewhere from now on, and nobody comes after."""
    reason = supervisor.mask(supervisor.stop_reason)
    for name in ("reporter", "backend_adapter"):
        yield name, ChildNote("worker", ChildState.STOPPING, reason, 0)


def for_newcomer(supervisor: Supervisor, name: str) -> Iterator[Tiding]:
    """A process (or the command line) connected: where the others stand."""
    if name in ("backend_adapter", "reporter"):
        yield name, model_state(supervisor)
    if name == "backend_adapter" and supervisor.ready_line is not None:
        yield name, supervisor.ready_line  # said before it could hear, or to another
    if name == "reporter":
        for member in supervisor.members.values():
            if supervisor.is_ours(member.name):
                yield from of_change(supervisor, member)
    if supervisor.stopping:
        yield from (tiding for tiding in of_stop(supervisor) if tiding[0] == name)


def model_state(supervisor: Supervisor) -> ModelState:
    """Where the model server's process stands."""
    member, max_perf = supervisor.members.get("model"), supervisor.max_perf
    if member is None:
        return ModelState("external", started_at=supervisor.started_at, max_perf=max_perf)
    life = member.life
    return ModelState(
        life.state,
        life.generation,
        life.pid,
        supervisor.mask(life.reason or member.last_exit),
        life.started_at,
        life.restarts,
        max_perf,
    )
