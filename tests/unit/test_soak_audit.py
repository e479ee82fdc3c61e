"""The judge of the soak sees each kind of fault, and allows what a death explains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.soak_audit import Audit, Told, Verdict, reachable
from tests.chaos.soak_client import Seen
from tests.chaos.soak_harm import Death
from tests.chaos.soak_mix import Ask


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
