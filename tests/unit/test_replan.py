"""A run's settings while it runs: what a worker.py says, said once or often, and what is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.handoff_file import HandoffFile
from supervisor.plan import Plan, make
from supervisor.replan import Replanner
from supervisor.settings import Settings
from supervisor.settings_sources import Fault, SettingsError, load


class Scene:
    """``read`` counts how often the settings were read."""

    def __init__(self, directory: Path, **flags: str) -> None:
        self.read = 0
        self.flags = {"hooks.file": "worker.py", **flags}
        self.handoff = HandoffFile("run", str(directory))
        self.refused = ""
        self.replanner = Replanner(self.reread({}), self.reread, self.handoff, self.accept)

    def accept(self, plan: Plan) -> None:
        if self.refused:
            raise SettingsError([Fault("worker.host", self.refused)])

    def reread(self, given: dict[str, Any] | None) -> Plan:
        self.read += 1
        return make(load(None, {}, self.flags, given=given), embedded=False)

    def says(
        self, port: int, *paths: str, benchmark: dict[str, Any] | None = None, **model: Any
    ) -> bool:
        values: dict[str, Any] = {
            "benchmark": benchmark or {},
            "model": {"url": f"http://127.0.0.1:{port}", **model},
            "route": [{"path": path} for path in paths],
        }
        return self.replanner.configure(msgspec.msgpack.encode(values))

    @property
    def now(self) -> Settings:
        return self.replanner.plan.settings


def test_what_is_said_again_changes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.says(18000, "/a")
    read = scene.read
    assert not scene.says(18000, "/a")
    assert scene.read == read
    assert [route.path for route in scene.now.route] == ["/a"]


def test_a_restarted_file_may_change_routes_and_move_its_model_server(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.says(18000, "/a", health="/health")
    assert scene.says(18001, "/a", "/b", health="/up", probe_every_s=1.0)
    model = scene.now.model
    assert [route.path for route in scene.now.route] == ["/a", "/b"]
    assert (model.url, model.health) == ("http://127.0.0.1:18001", "/up")
    assert model.probe_every_s == 5.0, "the rest stays"
    assert scene.replanner.reload() == ["model"], "and is named"
    assert scene.now.model.url == "http://127.0.0.1:18001"


def test_a_figure_that_was_measured_meanwhile_is_no_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path)
    for max_perf in (0.0, 5.0):
        benchmark = {"route": "/a", "sampled": True, "max_perf": max_perf}
        assert scene.says(18000, "/a", benchmark=benchmark)
    assert scene.now.benchmark.max_perf == 0.0
    assert "start the worker anew" not in caplog.text
    assert scene.says(18000, "/a", benchmark={"route": "/a", "sampled": True, "runs": 2})
    assert "start the worker anew for what changed in benchmark" in caplog.text


def test_a_model_server_that_the_worker_starts_stays_where_it_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path, **{"model.command": "serve"})
    scene.says(18000, "/a")
    assert scene.says(18001, "/a")
    assert scene.now.model.url == "http://127.0.0.1:18000"


def test_what_cannot_work_is_not_kept_and_is_told_each_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.says(18000, "/a")
    for _ in range(2):
        with pytest.raises(SettingsError):
            scene.says(18000, "/a b")
    assert scene.replanner.reload() == []
    assert [route.path for route in scene.now.route] == ["/a"]
    assert not scene.says(18000, "/a")


def test_what_cannot_be_written_was_not_taken(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "gone")
    for _ in range(2):
        with pytest.raises(SettingsError) as caught:
            scene.says(18000, "/a")
        assert isinstance(caught.value.faults[0], Fault)
    (tmp_path / "gone").mkdir()
    assert scene.says(18000, "/a")


def test_what_is_not_accepted_is_not_taken_and_may_be_said_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.refused = "cannot bind it"
    for _ in range(2):
        with pytest.raises(SettingsError, match="cannot bind it"):
            scene.says(5000, "/a")
    assert not scene.replanner.plan.configured
    scene.refused = ""
    assert scene.says(5000, "/a")
    assert scene.replanner.plan.configured
