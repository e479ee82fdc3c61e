"""What a run that is not ready waits for, in the words of people.

Law: what is named is the first thing that has not come: our processes, then the model server, then
the engine. What the model server's readiness waits for only the adapter knows; it says so with
each heartbeat (its gauge ``model_awaits``).

It reads the supervisor and changes nothing. The texts are not masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.messages import ChildState

if TYPE_CHECKING:
    from supervisor.process import Supervisor

#: What a heartbeat carries.
Gauges = dict[str, Any]
#: Posts in a row that a local engine may leave without an answer.
MUTE_POSTS = 3


def of_run(supervisor: Supervisor) -> str:
    """Why it is not ready yet, while nothing is known to be wrong."""
    late = [
        f"{member.name} ({member.detail})" if member.detail else member.name
        for member in supervisor.members.values()
        if member.state is not ChildState.READY and member.name != "model"
    ]
    if late:
        return f"waiting for {', '.join(late)}"
    if not supervisor.model_ready:
        return of_model(supervisor) or "waiting for the model server"
    if lacks_key(supervisor):
        return "waiting for the engine's public key"
    return "waiting for the engine to take a report"


def lacks_key(supervisor: Supervisor) -> bool:
    """Ingress refuses every signed request: no public key of the engine has come."""
    return any(member.gauges.get("lacks_key") for member in supervisor.members.values())


def engine_knows(gauges: Gauges) -> bool:
    """It has acknowledged a report that says ready (a gauge of the reporter)."""
    return bool(gauges.get("reported_ready"))


def mute_engine(supervisor: Supervisor) -> str:
    """Why the local engine counts as frozen: it takes connections, and has answered none of the
    reporter's posts for the time that ``MUTE_POSTS`` of them may take. "": it does not.
    """
    engine, reporter = (supervisor.members.get(name) for name in ("engine", "reporter"))
    if engine is None or reporter is None or engine.state is not ChildState.READY:
        return ""
    patience_s = MUTE_POSTS * supervisor.plan.settings.engine.timeout_s
    silent_s = float(reporter.gauges.get("last_post_s", 0.0))
    silent = reporter.gauges.get("last_post_kind") == "timeout" and not 0 <= silent_s <= patience_s
    if not silent or supervisor.loop.time() - engine.life.started_at <= patience_s:
        return ""
    return f"it takes reports and answers none of them for {patience_s:g} s"


def deciding(gauges: Gauges) -> tuple[bool, bool]:
    """What of a heartbeat decides whether the worker is ready."""
    return engine_knows(gauges), bool(gauges.get("lacks_key"))


def of_model(supervisor: Supervisor) -> str:
    """Why the model server is not ready; "" when nobody has said so."""
    model, verdict = supervisor.members.get("model"), supervisor.model_verdict
    adapter = supervisor.members.get("backend_adapter")
    reason = model.life.reason if model is not None else ""
    runs = model is None or model.state in (ChildState.STARTING, ChildState.READY)
    if adapter is not None and adapter.state is ChildState.READY and runs:
        awaits = str(adapter.gauges.get("model_awaits", ""))
        if awaits:
            return f"{awaits}; before that: {reason}" if reason else awaits
    return reason or (verdict.reason if verdict is not None else "")


def last_line(supervisor: Supervisor) -> str:
    """The latest line that the present process of the model server has printed; "": none."""
    model = supervisor.members.get("model")
    if model is None or model.capture is None:
        return ""
    lines = model.ring.since(model.capture.begins)[0]
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
