"""The capacity learnt from traffic: when it is known, what it counts, that it stays honest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapter.capacity import SUSTAINED_S, Capacity


def serve(capacity: Capacity, now: float, seconds: float, workload: float, times: int) -> float:
    """One request after the other; returns the time after the last."""
    for _ in range(times):
        capacity.started(now)
        capacity.ended(workload, now, now + seconds)
        now += seconds
    return now


def test_unknown_until_there_was_enough_traffic() -> None:
    capacity = Capacity()
    assert capacity.max_perf == 0
    now = serve(capacity, 0.0, 0.6, 6.0, 2)
    assert capacity.max_perf == 0  # two requests
    serve(capacity, now, 0.6, 6.0, 1)
    assert capacity.max_perf == pytest.approx(10.0)
    capacity = Capacity()
    serve(capacity, 0.0, 0.1, 6.0, 9)
    assert capacity.max_perf == 0  # 0.9 s


def test_idle_time_does_not_count() -> None:
    capacity = Capacity()
    now = serve(capacity, 0.0, 2.0, 20.0, 3)
    serve(capacity, now + 10_000.0, 2.0, 20.0, 3)
    assert capacity.max_perf == pytest.approx(10.0)


def test_requests_side_by_side_add_up() -> None:
    capacity = Capacity()
    for _ in range(8):
        capacity.started(0.0)
    for _ in range(8):
        capacity.ended(10.0, 0.0, 4.0)
    assert capacity.max_perf == pytest.approx(20.0)


def test_what_was_not_served_adds_time_but_no_work() -> None:
    capacity = Capacity()
    now = serve(capacity, 0.0, 1.0, 0.0, 3)
    assert capacity.max_perf == 0
    serve(capacity, now, 1.0, 20.0, 3)
    assert 9.0 < capacity.max_perf < 11.0


def test_a_request_that_took_no_time() -> None:
    capacity = Capacity()
    capacity.started(0.0)
    capacity.started(0.0)
    capacity.ended(5.0, 0.0, 0.0)
    serve(capacity, 0.0, 1.0, 5.0, 2)
    assert capacity.max_perf == pytest.approx(7.5, rel=0.05)


@pytest.mark.parametrize("seconds", [0.5, 30.0, 600.0])
def test_long_requests_do_not_look_faster_than_they_are(seconds: float) -> None:
    capacity = Capacity()
    serve(capacity, 0.0, seconds, seconds * 7.0, 40)
    assert capacity.max_perf == pytest.approx(7.0)


def test_the_benchmark_stands_until_sustained_traffic_exceeds_it() -> None:
    capacity = Capacity(15.0)
    assert capacity.max_perf == 15.0
    now = serve(capacity, 0.0, 1.0, 20.0, int(SUSTAINED_S) - 1)
    assert capacity.max_perf == 15.0
    now = serve(capacity, now, 1.0, 20.0, 2)
    assert capacity.max_perf == pytest.approx(20.0)
    serve(capacity, now, 1.0, 1.0, 1000)
    assert capacity.max_perf == 15.0


def test_what_only_traffic_has_shown_stays() -> None:
    capacity = Capacity()
    now = serve(capacity, 0.0, 1.0, 20.0, int(SUSTAINED_S) + 1)
    serve(capacity, now, 1.0, 1.0, 1000)
    assert capacity.max_perf == pytest.approx(20.0)


def test_who_claims_too_much_does_not_turn_admission_off() -> None:
    capacity = Capacity(15.0)
    now = serve(capacity, 0.0, 1.0, 10.0, 20)
    now = serve(capacity, now, 1.0, 2.0**20, 5)
    assert 15.0 < capacity.max_perf < 50.0  # five of the latest 25, ten times as much
    serve(capacity, now, 1.0, 10.0, 1200)
    assert capacity.max_perf == 15.0


def test_work_that_becomes_larger_for_good_is_believed() -> None:
    capacity = Capacity(15.0)
    now = serve(capacity, 0.0, 1.0, 10.0, 20)
    serve(capacity, now, 1.0, 10_000.0, 600)
    assert capacity.max_perf == pytest.approx(10_000.0, rel=0.05)


@given(
    sizes=st.lists(st.floats(50, 100), min_size=3, max_size=40),
    claims=st.lists(st.tuples(st.integers(0, 40), st.floats(1e3, 2.0**40)), max_size=1),
    pace=st.floats(1, 1000),
    benchmarked=st.sampled_from([0.0, 1.0]),
)
def test_one_enormous_claim_counts_for_a_few_usual_ones(
    sizes: list[float], claims: list[tuple[int, float]], pace: float, benchmarked: float
) -> None:
    """Wherever it comes, be it the very first."""
    capacity = Capacity(benchmarked)
    worked, now = [(size, size) for size in sizes], 0.0
    for place, claim in claims:
        worked.insert(place, (claim, 75.0))
    for claim, size in worked:
        capacity.started(now)
        capacity.ended(claim, now, now + size / pace)
        now += size / pace
    # at worst ten of twice the size among four, all of the same pace
    assert capacity.max_perf <= max(benchmarked, pace * 8.0 * 1.1)
    if not claims and capacity.max_perf > benchmarked:
        assert capacity.max_perf == pytest.approx(pace)


def test_a_benchmark_that_comes_later() -> None:
    capacity = Capacity()
    serve(capacity, 0.0, 1.0, 20.0, 5)
    capacity.benchmarked(12.0)
    assert capacity.max_perf == 12.0
    capacity.benchmarked(5.0)
    assert capacity.max_perf == 12.0


@given(
    jobs=st.lists(st.tuples(st.floats(0, 300), st.floats(0.01, 300)), min_size=1, max_size=30),
    rate=st.floats(0.1, 1000),
)
def test_it_never_exceeds_what_the_model_server_could_do(
    jobs: list[tuple[float, float]], rate: float
) -> None:
    """Jobs of any lengths, side by side, each served at one rate: no more than that times all."""
    capacity = Capacity()
    events: list[tuple[float, int, float, float]] = []
    for began_at, seconds in jobs:
        events.append((began_at, 0, began_at, 0.0))
        events.append((began_at + seconds, 1, began_at, seconds * rate))
    for at, kind, began_at, workload in sorted(events):
        if kind == 0:
            capacity.started(at)
        else:
            capacity.ended(workload, began_at, at)
        assert capacity.max_perf <= rate * len(jobs) * (1 + 1e-6)
