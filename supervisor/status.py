"""What ``status`` says: one snapshot of a run, as plain data.

The keys are stable: scripts read them (``status --json``). Texts are masked, secrets never appear,
and everything is bounded: members by the plan, gauges by the heartbeat.

    ready, reason              everything works; else the first thing that does not, for people
    pid, run_id, version, uptime_s, embedded, stopping
    urls                       worker, admin, engine
    engine_local, routes       the local engine runs; paths that clients may POST to
    signatures                 they are checked
    members                    name, state, pid, uptime_s, restarts, reason, last_exit, gauges,
                               log_dropped_bytes, log_cut_bytes, log_error
    model                      ready, healthy, state, reason, generation, url
    queue, load                gauges of backend_adapter and reporter, {} until their first beat
    own_log                    dropped_bytes and error of the supervisor's own log file
    malformed                  messages that were no words of ours and were dropped, by who got them

It reads the supervisor and changes nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import supervisor as package
from supervisor import awaited
from supervisor.messages import ChildState

if TYPE_CHECKING:
    from supervisor.member import Member
    from supervisor.process import Supervisor

#: Characters of a log line that is quoted.
MAX_QUOTE = 100


def status_of(supervisor: Supervisor) -> dict[str, Any]:
    """The snapshot; JSON can hold it."""
    now = supervisor.loop.time()
    plan = supervisor.plan
    reason = unready_reason(supervisor)
    return {
        "ready": not reason,
        "reason": reason,
        "pid": os.getpid(),
        "run_id": supervisor.run_id,
        "version": package.__version__,
        "uptime_s": round(now - supervisor.started_at, 3),
        "embedded": plan.embedded,
        "stopping": supervisor.stopping,
        "urls": {"worker": plan.worker_url, "admin": plan.admin_url, "engine": plan.engine_url},
        "engine_local": plan.local_engine_port != 0,
        "routes": [route.path for route in plan.settings.route],
        "signatures": plan.settings.auth.mode == "signature",
        "members": [_member(supervisor, member, now) for member in supervisor.members.values()],
        "model": _model(supervisor),
        "queue": _gauges(supervisor, "backend_adapter"),
        "load": _gauges(supervisor, "reporter"),
        "own_log": {
            "dropped_bytes": supervisor.log.dropped_bytes,
            "error": supervisor.mask(supervisor.log.error),
        },
        "malformed": _malformed(supervisor),
    }


def unready_reason(supervisor: Supervisor) -> str:
    """The first thing that is not ready, in the words of people; "" when all is.

    What has failed for good comes before what is on its way, and the model server last of either.
    """
    if supervisor.stopping:
        return "the worker is stopping"
    behind = [one for one in supervisor.members.values() if one.state is not ChildState.READY]
    behind.sort(key=lambda one: (one.state is not ChildState.FAILED, one.name == "model"))
    if behind and behind[0].name != "model":
        first = behind[0]
        detail = first.life.reason or first.detail
        return supervisor.mask(f"{first.name} is {first.state}" + _because(detail))
    if supervisor.model_ready:
        return _no_key(supervisor) if awaited.lacks_key(supervisor) else ""
    text = "the model server is not ready" + _because(awaited.of_model(supervisor))
    model, line = supervisor.members.get("model"), awaited.last_line(supervisor)[:MAX_QUOTE]
    if line and model is not None and model.state is ChildState.STARTING:
        text = f"{text}; its output: {line}"
    return supervisor.mask(text)


def _no_key(supervisor: Supervisor) -> str:
    error = str(_gauges(supervisor, "reporter").get("last_post_error", ""))
    return "no public key from the engine yet, every signed request is refused" + _because(error)


def _because(detail: str) -> str:
    return f": {detail}" if detail else ""


def _member(supervisor: Supervisor, member: Member, now: float) -> dict[str, Any]:
    life, log = member.life, member.log
    return {
        "name": member.name,
        "state": str(life.state),
        "pid": life.pid,
        "uptime_s": round(now - life.started_at, 3) if life.pid else 0.0,
        "restarts": life.restarts,
        "reason": supervisor.mask(life.reason or member.detail),
        "last_exit": supervisor.mask(member.last_exit),
        "gauges": _masked(supervisor, member.gauges),
        "log_dropped_bytes": log.dropped_bytes,
        "log_cut_bytes": log.cut_bytes,
        "log_error": supervisor.mask(log.error),
    }


def _model(supervisor: Supervisor) -> dict[str, Any]:
    verdict, member = supervisor.model_verdict, supervisor.members.get("model")
    return {
        "ready": supervisor.model_ready,
        "healthy": verdict is not None and verdict.healthy,
        "state": str(member.state) if member is not None else "external",
        "reason": "" if supervisor.model_ready else supervisor.mask(awaited.of_model(supervisor)),
        "generation": member.life.generation if member is not None else 0,
        "url": supervisor.plan.settings.model.url,
    }


def _malformed(supervisor: Supervisor) -> dict[str, int]:
    counts = {"supervisor": supervisor.control.malformed}
    for name, member in supervisor.members.items():
        if "malformed" in member.gauges:
            counts[name] = int(member.gauges["malformed"])
    return counts


def _gauges(supervisor: Supervisor, name: str) -> dict[str, Any]:
    member = supervisor.members.get(name)
    return _masked(supervisor, member.gauges) if member is not None else {}


def _masked(supervisor: Supervisor, gauges: dict[str, Any]) -> dict[str, Any]:
    return {
        key: supervisor.mask(value) if isinstance(value, str) else value
        for key, value in gauges.items()
    }
