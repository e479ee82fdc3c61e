"""The laws of the demo engine's registry, against a model that is too simple to be wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from supervisor.demo import routing
from supervisor.demo.engine_api import Report
from supervisor.demo.routing import FORGET_S, SILENT_S, Registry, WorkerStatus

AMOUNTS = st.floats(min_value=0, max_value=1e6)


class Routing(RuleBasedStateMachine):
    """Reports, choices and time in any order."""

    @initialize()
    def begin(self) -> None:
        self.registry = Registry()
        self.now = 1000.0
        self.last: dict[int, tuple[float, Report]] = {}
        self.loaded: set[int] = set()
        self.assigned: dict[int, float] = {}

    @rule(
        id=st.integers(1, 4),
        url=st.sampled_from(["", "http://w:1", "http://w:2"]),
        loadtime=st.sampled_from([0.0, 0.0, 3.5]),
        error_msg=st.sampled_from(["", "", "out of memory"]),
        cur_load=AMOUNTS,
        max_perf=st.sampled_from([0.0, 1.0, 250.0]),
    )
    def report(
        self,
        id: int,
        url: str,
        loadtime: float,
        error_msg: str,
        cur_load: float,
        max_perf: float,
    ) -> None:
        report = Report(
            id=id,
            url=url,
            loadtime=loadtime,
            error_msg=error_msg,
            cur_load=cur_load,
            max_perf=max_perf,
        )
        self.registry.report(report, self.now)
        self.last[id] = (self.now, report)
        self.assigned[id] = 0.0
        if loadtime > 0 or max_perf > 0:
            self.loaded.add(id)

    @rule(seconds=st.sampled_from([0.5, 10.0, SILENT_S, 40.0, FORGET_S]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        gone = {worker.report.id for worker in self.registry.expire(self.now)}
        assert gone == {id for id, (at, _) in self.last.items() if self.now - at > FORGET_S}
        for id in gone:
            del self.last[id], self.assigned[id]
            self.loaded.discard(id)

    @rule(cost=AMOUNTS)
    def choose(self, cost: float) -> None:
        waits = {
            id: (report.cur_load + self.assigned[id]) / (report.max_perf or 1.0)
            for id, (at, report) in self.last.items()
            if id in self.loaded
            and self.now - at <= SILENT_S
            and not report.error_msg
            and report.url
        }
        chosen = self.registry.choose(cost, self.now)
        if chosen is None:
            assert not waits
            return
        assert waits[chosen.report.id] == min(waits.values())
        self.assigned[chosen.report.id] += cost

    @invariant()
    def the_view_tells_the_same(self) -> None:
        if not hasattr(self, "registry"):
            return
        view = self.registry.view(self.now)
        assert set(view) == {str(id) for id in self.last}
        for id, (at, report) in self.last.items():
            status = view[str(id)]["status"]
            assert (status == "silent") == (self.now - at > SILENT_S)
            assert status != "ready" or not report.error_msg
            assert view[str(id)]["assigned"] == self.assigned[id]


TestRouting = Routing.TestCase
TestRouting.settings = settings(max_examples=60, stateful_step_count=30)


@given(costs=st.lists(st.floats(min_value=1, max_value=100), min_size=1, max_size=50))
def test_equal_idle_workers_share_the_work(costs: list[float]) -> None:
    registry = Registry()
    for id in (1, 2, 3):
        registry.report(Report(id=id, url=f"http://w:{id}", loadtime=1, max_perf=10), 0.0)
    for cost in costs:
        assert registry.choose(cost, 1.0) is not None
    shares = [worker.assigned for worker in registry.workers]
    assert max(shares) - min(shares) <= max(costs) + 1e-6


def test_a_report_replaces_what_was_assigned_since_the_last_one() -> None:
    registry = Registry()
    worker = registry.report(Report(id=1, url="http://w", loadtime=1, max_perf=2), 0.0)
    registry.choose(100, 0.0)
    assert worker.expected_wait_s == 50
    registry.report(Report(id=1, url="http://w", cur_load=60, max_perf=2), 1.0)
    assert worker.expected_wait_s == 30


def test_each_status_has_its_reason() -> None:
    registry = Registry()
    worker = registry.report(Report(id=1, url="http://w"), 0.0)
    assert worker.status(0.0) is WorkerStatus.LOADING
    registry.report(Report(id=1, url="http://w", loadtime=2.0), 1.0)
    assert worker.status(1.0) is WorkerStatus.READY
    registry.report(Report(id=1, url="http://w"), 2.0)
    assert worker.status(2.0) is WorkerStatus.READY, "loadtime is reported only once"
    assert worker.status(2.0 + SILENT_S) is WorkerStatus.READY
    assert worker.status(2.1 + SILENT_S) is WorkerStatus.SILENT
    registry.report(Report(id=1, url="http://w", error_msg="the card fell off"), 3.0)
    assert worker.status(3.0) is WorkerStatus.ERROR
    registry.report(Report(id=1, url=""), 4.0)
    assert worker.status(4.0) is WorkerStatus.LOADING, "nobody can be sent to no URL"


def test_workers_without_an_id_are_told_apart_by_their_url() -> None:
    registry = Registry()
    registry.report(Report(id=0, url="http://w:1"), 0.0)
    registry.report(Report(id=0, url="http://w:2"), 0.0)
    assert [worker.key for worker in registry.workers] == ["http://w:1", "http://w:2"]


def test_no_more_than_the_bound_are_remembered() -> None:
    registry = Registry()
    for id in range(1, routing.MAX_WORKERS + 3):
        registry.report(Report(id=id, url="http://w"), float(id))
    keys = {worker.key for worker in registry.workers}
    assert len(keys) == routing.MAX_WORKERS
    assert "1" not in keys and "2" not in keys and "3" in keys


def test_a_worker_that_stays_silent_is_forgotten() -> None:
    registry = Registry()
    report = Report(id=1, url="http://w:1", loadtime=1.0, error_msg="", cur_load=0.0, max_perf=1.0)
    worker = registry.report(report, 0.0)
    assert registry.expire(FORGET_S) == []
    assert registry.expire(FORGET_S + 1.0) == [worker]
    assert registry.workers == []
