"""The judge of the soak sees each kind of fault and of leak, and allows what a death explains."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.chaos.soak import Soak, report
from tests.chaos.soak_audit import Audit, Told, Verdict, reachable
from tests.chaos.soak_client import Seen
from tests.chaos.soak_harm import Death, Holding
from tests.chaos.soak_leaks import SLACK, Leaked
from tests.chaos.soak_mix import Ask
from tests.kit.worker import Worker


def ask(idx: int, kind: str = "unary") -> Ask:
    return Ask(idx, kind, "/generate", {"request_id": f"t{idx}"}, 10 * idx)


def seen(idx: int, outcome: str = "ok", status: int = 200, kind: str = "unary") -> Seen:
    return Seen(ask(idx, kind), outcome, status, "", float(idx), idx + 0.5)


def told_row(idx: int, status: str = "Success") -> dict[str, Any]:
    return {"request_idx": idx, "status": status, "success": True, "received_at": idx + 1.0}


class Case:
    """Three requests that were served: nothing is wrong."""

    def __init__(self) -> None:
        self.seen = [seen(1), seen(2), seen(3)]
        self.deaths: list[Death] = []
        self.told = Told(
            [told_row(1), told_row(2), told_row(3)],
            [{"cur_perf": 60.0, "rej_load": 0.0, "new_load": 60.0, "received_at": 5.0}],
            {"received": 60, "served": 60, "errored": 0, "cancelled": 0, "rejected": 0},
            3,
            Counter({"t1": 1, "t2": 1, "t3": 1}),
        )

    def verdict(self) -> Verdict:
        return Audit(self.seen, self.deaths, self.told).run()


def faults(verdict: Verdict) -> set[str]:
    names = ("lost", "duplicated", "swapped", "unaccounted")
    return {name for name in names if getattr(verdict, name)}


def set_(path: str, value: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        *places, last = path.split(".")
        at: Any = case
        for place in places:
            at = at[int(place)] if place.isdigit() else getattr(at, place)
        if isinstance(at, dict):
            at[last] = value
        else:
            setattr(at, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_("seen.1.outcome", "unanswered"), "lost"),
        (set_("seen.1.outcome", "cut"), "lost"),
        (set_("seen.1.outcome", "queue_full"), "lost"),
        (set_("seen.1.outcome", "model_failed"), "lost"),
        (set_("seen.1.fault", "swapped"), "swapped"),
        (set_("seen.1.fault", "disordered"), "duplicated"),
        (set_("told.journal.t2", 2), "duplicated"),
        (set_("told.journal.t2", 0), "lost"),
        (lambda case: case.told.rows.append(told_row(2)), "duplicated"),
        (lambda case: case.told.rows.append(told_row(9)), "unaccounted"),
        (lambda case: case.told.rows.pop(), "unaccounted"),
        (set_("told.rows.1.status", "Error"), "unaccounted"),
        (set_("told.workload.received", 61), "unaccounted"),
        (set_("told.workload.served", 59), "unaccounted"),
        (set_("told.statuses.0.cur_perf", 59.0), "unaccounted"),
        (set_("told.statuses.0.cur_perf", 61.0), "unaccounted"),
        (set_("told.statuses.0.new_load", 59.0), "unaccounted"),
        (set_("told.requests", 4), "unaccounted"),
    ],
)
def test_it_sees(change: Callable[[Case], Any], fault: str) -> None:
    case = Case()
    assert faults(case.verdict()) == set()
    change(case)
    assert fault in faults(case.verdict())


def test_a_forged_request_that_ran_is_seen() -> None:
    case = Case()
    case.seen.append(seen(4, "bad_signature", 401, "forged"))
    assert faults(case.verdict()) == set()
    case.told.journal["t4"] = 1
    assert "duplicated" in faults(case.verdict())


def test_a_death_explains_what_only_the_dead_knew() -> None:
    case = Case()
    case.deaths.append(Death("ingress-0", 7, "SIGKILL", 3.4, 3.5, 4.0))
    case.seen[2].outcome, case.seen[2].status = "cut", 0
    case.told.rows.pop()
    case.told.requests = 2
    case.told.workload |= {"received": 30, "served": 30}
    case.told.statuses[0] |= {"cur_perf": 30.0, "new_load": 30.0}
    verdict = case.verdict()
    assert faults(verdict) == set()
    assert (verdict.untold, verdict.untold_work) == ({"cut": 1}, 30)
    case.deaths[0].hurt_at = case.deaths[0].died_at = 30.0
    assert faults(case.verdict()) == {"lost"}


def test_a_row_may_be_told_twice_only_around_a_death_of_the_reporter() -> None:
    case = Case()
    case.told.rows.append(told_row(2))
    case.deaths.append(Death("reporter", 7, "SIGKILL", 3.2, 3.3, 4.0))
    verdict = case.verdict()
    assert (faults(verdict), verdict.rows_told_twice) == (set(), 1)
    case.deaths[0].hurt_at = case.deaths[0].died_at = 30.0
    assert faults(case.verdict()) == {"duplicated"}


def test_sums_of_uncertain_parts() -> None:
    assert reachable(0, [])
    assert reachable(12, [{0, 5}, {0, 7}, {0, 100}])
    assert not reachable(6, [{0, 5}, {0, 7}])
    assert not reachable(-1, [{0}])
    assert not reachable(0.5, [{0, 1}])


NOTHING = {"processes": 0, "descriptors": 0, "files": 0}


@pytest.mark.parametrize(
    ("name", "now", "sort"),
    [
        ("reporter", Holding(10 + SLACK, 5 + SLACK, 9, 99.0), ""),
        ("reporter", Holding(10 + SLACK + 1, 5, 0, 50.0), "descriptors"),
        ("reporter", Holding(10, 5 + SLACK + 1, 0, 50.0), "processes"),
        ("reporter", Holding(10, 5, 10, 50.0), "descriptors"),
        ("ingress-0", Holding(10, 5, 1, 50.0), "descriptors"),
    ],
)
def test_what_a_process_holds_for_ever_is_leaked(name: str, now: Holding, sort: str) -> None:
    leaked = Leaked()
    leaked.compare({name: Holding(10, 5, 0, 50.0)}, {name: now}, connections=9)
    assert leaked.counts() == (NOTHING | {sort: 1} if sort else NOTHING)


def test_what_outlives_the_worker_is_leaked(tmp_path: Path) -> None:
    state, run = tmp_path / "state", tmp_path / "run"
    (state / "spool").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        left = SimpleNamespace(leftovers=lambda: [4711], state_dir=state, model_port=port)
        gone = SimpleNamespace(leftovers=list, state_dir=state, model_port=0)
        sound, leaked = Leaked(), Leaked()
        sound.behind(cast(Worker, gone), run, "http://127.0.0.1:0")
        assert sound.counts() == NOTHING
        run.mkdir()
        (state / "spool" / "body").touch()
        (state / "sessions.new").touch()
        leaked.behind(cast(Worker, left), run, "http://127.0.0.1:0")
    assert leaked.counts() == {"processes": 1, "descriptors": 1, "files": 3}
    assert len(leaked.texts()) == 5


def test_whatever_is_left_or_wrong_fails_the_soak() -> None:
    def line(leaked: Leaked, *trouble: str) -> tuple[dict[str, Any], list[str]]:
        case = Case()
        soak = SimpleNamespace(
            watch=SimpleNamespace(deaths=[], unseen=0),
            client=SimpleNamespace(seen=case.seen, refused_connections=0),
            leaked=leaked, trouble=list(trouble), seconds=1.0, held=dict,
        )  # fmt: skip
        return report(cast(Soak, soak), case.verdict(), seed=1, ingresses=1)

    told, wrong = line(Leaked())
    assert (told["leaked"], told["trouble"], wrong) == (NOTHING, 0, [])
    told, wrong = line(Leaked(processes=["process 7"], files=["file a", "file b"]), "exit code 69")
    assert told["leaked"] == {"processes": 1, "descriptors": 0, "files": 2}
    assert told["trouble"] == 1
    assert wrong == [
        "leaked: process 7", "leaked: file a", "leaked: file b", "trouble: exit code 69",
    ]  # fmt: skip
