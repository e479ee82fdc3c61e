"""The metrics: what Prometheus reads, parsed by its own parser."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from reporter.messages import Closed, Outcome, QueueReport, Totals
from reporter.metrics import MAX_LABELS, SECONDS, Gauges, Metrics


def closed(outcome: str, status: int, route: str = "/v1", **times: float) -> Closed:
    moments = {"entered_at": 10.0, "started_at": 10.25, "ended_at": 12.0, "first_byte_at": 10.5}
    moments.update(times)
    return Closed(
        1,
        1,
        100.0,
        outcome,
        moments["entered_at"],
        moments["started_at"],
        moments["ended_at"],
        route,
        status,
        moments["first_byte_at"],
    )


def samples(metrics: Metrics, gauges: Gauges) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render(gauges).decode()):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_ended_requests_are_counted_with_bounded_labels() -> None:
    metrics = Metrics(["/v1"])
    metrics.count([closed(Outcome.SUCCESS, 200), closed(Outcome.SUCCESS, 201)])
    metrics.count([closed(Outcome.REJECTED, 429), closed(Outcome.CANCELLED, 499, "/v1")])
    metrics.count([closed("Vanished", 0, f"/made-up/{number}") for number in range(500)])
    found = samples(metrics, Gauges())
    assert {name: value for name, value in found.items() if "_requests_total{" in name} == {
        "lighterman_requests_total{outcome=Success,route=/v1,status=2xx}": 2.0,
        "lighterman_requests_total{outcome=Rejected,route=/v1,status=4xx}": 1.0,
        "lighterman_requests_total{outcome=Cancelled,route=/v1,status=4xx}": 1.0,
        "lighterman_requests_total{outcome=Error,route=other,status=other}": 500.0,
    }


def test_durations_fall_into_buckets() -> None:
    metrics = Metrics(["/v1"])
    metrics.count(
        [
            closed(Outcome.SUCCESS, 200),
            closed(Outcome.ERROR, 504, started_at=0.0, first_byte_at=0.0, ended_at=5000.0),
            closed(Outcome.SUCCESS, 200, started_at=9.0, ended_at=9.0, first_byte_at=9.0),
            closed(Outcome.REJECTED, 429),  # no work, no duration
        ]
    )
    found = samples(metrics, Gauges())
    duration = "lighterman_request_duration_seconds"
    assert found[f"{duration}_count{{route=/v1}}"] == 3.0
    assert found[f"{duration}_sum{{route=/v1}}"] == 4992.0
    assert found[f"{duration}_bucket{{le=1,route=/v1}}"] == 1.0
    assert found[f"{duration}_bucket{{le=2.5,route=/v1}}"] == 2.0
    assert found[f"{duration}_bucket{{le=600,route=/v1}}"] == 2.0
    assert found[f"{duration}_bucket{{le=+Inf,route=/v1}}"] == 3.0
    assert found["lighterman_first_byte_seconds_count{route=/v1}"] == 2.0
    assert found["lighterman_first_byte_seconds_sum{route=/v1}"] == 0.5
    assert found["lighterman_queue_wait_seconds_sum{route=/v1}"] == 0.25


@given(st.lists(st.sampled_from(SECONDS) | st.floats(-1.0, 700.0), max_size=60), st.integers(1, 7))
def test_a_batch_is_counted_as_its_durations_one_by_one(seconds: list[float], size: int) -> None:
    metrics = Metrics(["/v1"])
    ended = [closed(Outcome.SUCCESS, 200, ended_at=each, entered_at=0.0) for each in seconds]
    for start in range(0, len(ended), size):
        metrics.count(ended[start : start + size])
    found = samples(metrics, Gauges())
    for bound in SECONDS:
        name = f"lighterman_request_duration_seconds_bucket{{le={bound:g},route=/v1}}"
        assert found.get(name, 0.0) == sum(each <= bound for each in seconds)
    total = found.get("lighterman_request_duration_seconds_sum{route=/v1}", 0.0)
    assert total == pytest.approx(sum(max(0.0, each) for each in seconds))


def test_every_gauge_is_shown() -> None:
    gauges = Gauges(
        totals=Totals(600.0, 100.0, 50.0, 25.0, 20.0, 8),
        working=3,
        queue=QueueReport(4, 2, 1000, 5),
        refused={"bad_json": 6, **{f"kind-{number:03}": 1 for number in range(200)}},
        restarts={"model": 1, "ingress-0": 0},
        model_ready=True,
        max_perf=42.0,
        status_posted=11,
        status_failed=12,
        requests_posted=13,
        requests_failed=14,
        rows_waiting=15,
        rows_dropped=16,
        drift=17,
        gaps=18,
        store_failures=19,
    )
    found = samples(Metrics([]), gauges)
    prefix = "lighterman_"
    expected = {
        "workload_total{state=received}": 600.0,
        "workload_total{state=served}": 100.0,
        "workload_total{state=errored}": 50.0,
        "workload_total{state=cancelled}": 25.0,
        "workload_total{state=rejected}": 20.0,
        "workload_pending": 405.0,
        "requests_received_total": 8.0,
        "requests_working": 3.0,
        "queue_waiting": 4.0,
        "queue_running": 2.0,
        "queue_waiting_bytes": 1000.0,
        "retried_total": 5.0,
        "refused_total{kind=bad_json}": 6.0,
        "restarts_total{child=model}": 1.0,
        "restarts_total{child=ingress-0}": 0.0,
        "model_ready": 1.0,
        "max_perf": 42.0,
        "engine_posts_total{kind=status,result=accepted}": 11.0,
        "engine_posts_total{kind=status,result=failed}": 12.0,
        "engine_posts_total{kind=requests,result=accepted}": 13.0,
        "engine_posts_total{kind=requests,result=failed}": 14.0,
        "rows_waiting": 15.0,
        "rows_dropped_total": 16.0,
        "drift_total": 17.0,
        "gaps_total": 18.0,
        "store_failures_total": 19.0,
    }
    assert {name: found.get(prefix + name) for name in expected} == expected
    assert sum("refused_total" in name for name in found) == MAX_LABELS


def test_slow_libraries_wait_for_their_first_use() -> None:
    code = (
        "import sys, reporter.metrics, reporter.engine_client, reporter.health_pages\n"
        "slow = {'prometheus_client', 'aiohttp', 'cryptography'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
