"""What our processes are told of each other: the model server's standing, deaths, the stop.

Each function says to whom which message goes; sending is ``process.py``'s matter. Law: whoever
connects late, or anew, is told everything that the others were told before.

It reads the supervisor and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from supervisor import status
from supervisor.messages import ChildNote, ChildState, Message, ModelState, Unready

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
        yield "reporter", _note(supervisor, member)
        if member.name == "hooks":
            for name in filter(_needs_hooks, supervisor.members):
                yield name, _note(supervisor, member)
            if _starts_model(supervisor):
                yield "backend_adapter", model_state(supervisor)
        elif member.name == "backend_adapter" and member.state is ChildState.FAILED:
            for name in supervisor.members:  # nobody will answer what runs and what waits
                if name.startswith("ingress-"):
                    yield name, _note(supervisor, member)


def of_stop(supervisor: Supervisor) -> Iterator[Tiding]:
    """The worker stops: the engine is to route elsewhere from now on, and nobody comes after."""
    reason = supervisor.mask(supervisor.stop_reason)
    for name in filter(_hears_of_stop, supervisor.members):
        yield name, ChildNote("worker", ChildState.STOPPING, reason, 0)


def of_wait(supervisor: Supervisor) -> Tiding:
    """What it waits for before it is ready."""
    return "reporter", Unready(status.unready_reason(supervisor))


def for_newcomer(supervisor: Supervisor, name: str) -> Iterator[Tiding]:
    """A process (or the command line) connected: where the others stand."""
    if name in ("backend_adapter", "reporter"):
        yield name, model_state(supervisor)
    if _needs_hooks(name) and "hooks" in supervisor.members:
        yield name, _note(supervisor, supervisor.members["hooks"])
    if name == "backend_adapter" and supervisor.ready_line is not None:
        yield name, supervisor.ready_line  # said before it could hear, or to another
    if name == "reporter":
        for member in supervisor.members.values():
            if supervisor.is_ours(member.name):
                yield from of_change(supervisor, member)
        yield of_wait(supervisor)
    if supervisor.stopping:
        yield from (tiding for tiding in of_stop(supervisor) if tiding[0] == name)


def _needs_hooks(name: str) -> bool:
    return name == "backend_adapter" or name.startswith("ingress-")


def _hears_of_stop(name: str) -> bool:
    return name == "reporter" or _needs_hooks(name)


def _note(supervisor: Supervisor, member: Member) -> ChildNote:
    life = member.life
    reason = supervisor.mask(life.reason)
    return ChildNote(member.name, life.state, reason, life.restarts, life.generation)


def _starts_model(supervisor: Supervisor) -> bool:
    """The lifecycle of a worker.py does: with each life of the file begins one of the model's."""
    return "model" not in supervisor.members and supervisor.plan.settings.model.lifecycle


def model_generation(supervisor: Supervisor) -> int:
    """Which start of the model server is the present one."""
    name = "hooks" if _starts_model(supervisor) else "model"
    member = supervisor.members.get(name)
    return 0 if member is None else member.life.generation


def model_state(supervisor: Supervisor) -> ModelState:
    """Where the model server's process stands."""
    member, max_perf = supervisor.members.get("model"), supervisor.max_perf
    if member is None:
        generation, began_at = model_generation(supervisor), supervisor.started_at
        if generation > 1:
            began_at = supervisor.members["hooks"].life.started_at
        return ModelState("external", generation, started_at=began_at, max_perf=max_perf)
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
