"""The plan of a benchmark: what is sent, what counts, how it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend_adapter.benchmark import Benchmark, Command, Done, Failed, SendBatch


def answer(
    plan: Benchmark, batch: int, oks: list[bool], now: float, workload: float = 10.0
) -> Command | None:
    """Answer a whole batch at once; all but the last answer lead to nothing."""
    for ok in oks[:-1]:
        assert plan.result(batch, ok, workload, "" if ok else "HTTP 500", now) is None
    return plan.result(batch, oks[-1], workload, "" if oks[-1] else "HTTP 500", now)


def test_the_best_round_counts() -> None:
    plan = Benchmark(runs=3, concurrency=2, warmup=True)
    assert plan.start(0.0) == SendBatch(0, 1)
    assert answer(plan, 0, [True], 5.0) == SendBatch(1, 2)
    assert answer(plan, 1, [True, True], 7.0) == SendBatch(2, 2)  # 20 in 2 s
    assert answer(plan, 2, [True, True], 8.0) == SendBatch(3, 2)  # 20 in 1 s
    assert answer(plan, 3, [True, True], 12.0) == Done(20.0)


def test_without_a_warm_up() -> None:
    plan = Benchmark(runs=1, concurrency=3, warmup=False)
    assert plan.start(0.0) == SendBatch(1, 3)
    assert answer(plan, 1, [True] * 3, 2.0) == Done(15.0)


def test_only_successes_count() -> None:
    plan = Benchmark(runs=1, concurrency=4, warmup=False)
    plan.start(0.0)
    assert answer(plan, 1, [False, True, False, True], 2.0) == Done(10.0)


def test_a_failed_warm_up_ends_it() -> None:
    plan = Benchmark(runs=1, concurrency=1, warmup=True)
    plan.start(0.0)
    assert answer(plan, 0, [False], 1.0) == Failed("the warm-up had no success: HTTP 500")
    assert plan.result(0, True, 10.0, "", 2.0) is None


def test_a_round_without_success_ends_it_with_its_first_error() -> None:
    plan = Benchmark(runs=2, concurrency=2, warmup=False)
    plan.start(0.0)
    answer(plan, 1, [False, True], 1.0)
    assert plan.result(2, False, 0.0, "first", 2.0) is None
    ended = plan.result(2, False, 0.0, "second", 2.0)
    assert ended == Failed("round 2 had no success: first")


def test_a_round_that_times_out_is_the_last_one() -> None:
    plan = Benchmark(runs=5, concurrency=2, warmup=False)
    plan.start(0.0)
    plan.result(1, True, 10.0, "", 1.0)
    assert plan.timeout(1, 10.0) == Done(1.0)
    assert plan.result(1, True, 10.0, "", 11.0) is None


def test_a_round_that_times_out_without_success_fails() -> None:
    plan = Benchmark(runs=5, concurrency=2, warmup=True)
    plan.start(0.0)
    assert plan.timeout(0, 600.0) == Failed("the warm-up had no success: timed out")
    plan = Benchmark(runs=5, concurrency=2, warmup=False)
    plan.start(0.0)
    plan.result(1, False, 0.0, "HTTP 503", 1.0)
    assert plan.timeout(1, 600.0) == Failed("round 1 had no success: HTTP 503")


def test_a_round_that_took_no_time_says_nothing() -> None:
    plan = Benchmark(runs=1, concurrency=1, warmup=False)
    plan.start(3.0)
    assert answer(plan, 1, [True], 3.0) == Failed("no round took a measurable time")


def test_work_that_counts_nothing_says_nothing_and_is_no_failure() -> None:
    plan = Benchmark(runs=1, concurrency=1, warmup=False)
    plan.start(3.0)
    assert plan.result(1, True, 0.0, "", 4.0) == Done(0.0)


def test_what_comes_late_or_belongs_elsewhere_does_nothing() -> None:
    plan = Benchmark(runs=2, concurrency=1, warmup=True)
    assert plan.result(0, True, 1.0, "", 0.0) is None  # nothing was sent yet
    plan.start(0.0)
    assert plan.result(1, True, 1.0, "", 1.0) is None
    assert answer(plan, 0, [True], 1.0) == SendBatch(1, 1)
    assert plan.result(0, True, 1.0, "", 1.0) is None
    assert plan.timeout(0, 1.0) is None
    plan.cancel()
    assert plan.result(1, True, 1.0, "", 2.0) is None
    assert plan.timeout(1, 2.0) is None


@given(
    runs=st.integers(1, 4),
    concurrency=st.integers(1, 4),
    warmup=st.booleans(),
    events=st.lists(
        st.tuples(st.sampled_from(["ok", "bad", "timeout", "late"]), st.floats(0, 9)), max_size=60
    ),
)
def test_any_order_of_events_ends_it_once(
    runs: int, concurrency: int, warmup: bool, events: list[tuple[str, float]]
) -> None:
    plan = Benchmark(runs=runs, concurrency=concurrency, warmup=warmup)
    now = 0.0
    said: list[Command | None] = [plan.start(now)]
    batch = 0 if warmup else 1
    for event, seconds in events:
        now += seconds
        if event == "timeout":
            reply = plan.timeout(batch, now)
        elif event == "late":
            reply = plan.result(batch - 1, True, 1.0, "", now)
            assert reply is None
        else:
            reply = plan.result(batch, event == "ok", 1.0, event, now)
        said.append(reply)
        if isinstance(reply, SendBatch):
            assert reply == SendBatch(batch + 1, concurrency)
            batch += 1
    assert batch <= runs
    endings = [command for command in said if isinstance(command, Done | Failed)]
    assert len(endings) <= 1
    if endings:
        assert said[said.index(endings[0]) + 1 :] == [None] * (
            len(said) - said.index(endings[0]) - 1
        )
    for ending in endings:
        assert not isinstance(ending, Done) or ending.max_perf > 0


def test_making_the_payloads_is_not_the_model_servers_time() -> None:
    plan = Benchmark(runs=1, concurrency=2, warmup=False)
    assert plan.start(0.0) == SendBatch(1, 2)
    plan.began(0, 5.0)  # of another batch
    plan.began(1, 8.0)
    assert plan.result(1, True, 10.0, "", 9.0) is None
    assert plan.result(1, True, 10.0, "", 10.0) == Done(10.0)
