"""What `status` says that a worker lacks: of several things, what will not come by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from supervisor import awaited
from supervisor.messages import ChildState
from supervisor.status import unready_reason

READY, STARTING, FAILED = ChildState.READY, ChildState.STARTING, ChildState.FAILED


def said(monkeypatch: pytest.MonkeyPatch, **states: ChildState) -> str:
    monkeypatch.setattr(awaited, "of_model", lambda supervisor: "no answer yet")
    monkeypatch.setattr(awaited, "last_line", lambda supervisor: "")
    monkeypatch.setattr(awaited, "lacks_key", lambda supervisor: False)
    members: dict[str, Any] = {
        name: SimpleNamespace(
            name=name, state=state, detail="", life=SimpleNamespace(reason=f"why {name}")
        )
        for name, state in states.items()
    }
    supervisor: Any = SimpleNamespace(
        stopping=False,
        members=members,
        model_ready=states["model"] is READY,
        mask=lambda text: text,
    )
    return unready_reason(supervisor)


def test_what_failed_is_named_before_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(monkeypatch, model=READY, engine=READY, hooks=READY) == ""
    assert said(monkeypatch, model=STARTING, engine=STARTING, hooks=FAILED) == (
        "hooks is failed: why hooks"
    )
    assert said(monkeypatch, model=STARTING, engine=STARTING, hooks=READY) == (
        "engine is starting: why engine"
    )
    not_ready = "the model server is not ready: no answer yet"
    assert said(monkeypatch, model=STARTING, engine=READY, hooks=READY) == not_ready
    assert said(monkeypatch, model=FAILED, engine=STARTING, hooks=READY) == not_ready
    assert said(monkeypatch, model=FAILED, engine=STARTING, hooks=FAILED) == (
        "hooks is failed: why hooks"
    )
