"""The meter: one exact number per request, whatever the payload says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.workload import MAX_WORKLOAD, Meter, quantised
from supervisor.settings import Workload

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def measure(field: str, payload: Any, default: float = 100.0) -> float:
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Meter(Workload(field=field, default=default)).measure(text)


def test_without_a_field_it_is_constant() -> None:
    assert measure("", {"max_tokens": 5}) == 100.0
    assert measure("", b"anything", default=2.5) == 2.5


@pytest.mark.parametrize(
    ("field", "payload", "expected"),
    [
        ("max_tokens", {"max_tokens": 256}, 256.0),
        ("max_tokens", {"max_tokens": 0.5}, 0.5),
        ("max_tokens", {"a": [1, {"max_tokens": 3}], "max_tokens": 7}, 7.0),
        ("parameters.max_new_tokens", {"parameters": {"max_new_tokens": 9}}, 9.0),
        ("a.b.c-d", {"a": {"b": {"c-d": 4}}}, 4.0),
        ("a.b.é", {"a": {"b": {"é": 4}}}, 4.0),
        ("class.None", {"class": {"None": 4}}, 4.0),
        ("n", b'{"n":1,"n":2}', 2.0),
        ("n", b'{"n":2,"\\u006e":1}', 1.0),
        ("n", b'{"n":1,"n":null}', 100.0),
        ("n", b'{"n":"1","n":2}', 100.0),  # no number, though it does not count
        ("n.m", b'{"n":{"m":1},"n":{"m":2}}', 2.0),
        ("n.m", b'{"n":{"m":1},"n":{}}', 100.0),
        ("n", {"n": 1e-9}, 1 / 1024),
        ("n", {"n": 1.00001}, 1.0),
        ("n", {"n": 100_000}, 100_000.0),
        ("n", {"n": 100_001}, 100_000.0),
        ("n", {"n": 2**40 + 1}, 100_000.0),
        ("n", {"n": 1e300}, 100_000.0),
        ("n", {"n": 10**30}, 100_000.0),
    ],
)
def test_reads_the_field(field: str, payload: Any, expected: float) -> None:
    assert measure(field, payload) == expected


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"n": None},
        {"n": True},
        {"n": "5"},
        {"n": 0},
        {"n": -1},
        {"n": []},
        {"n": {"n": 5}},
        b'{"n":1e999}',
        b'{"n":' + b"9" * 20_000 + b"}",
        b'{"m":' + b"[" * 100_000 + b"]" * 100_000 + b',"n":5}',
        b"not json",
        b"",
    ],
)
def test_the_default_stands_in(payload: Any) -> None:
    assert measure("n", payload) == 100.0


@pytest.mark.parametrize("payload", [{}, {"a": None}, {"a": 5}, {"a": {}}, {"a": {"b": None}}])
def test_the_default_stands_in_for_a_nested_field(payload: Any) -> None:
    assert measure("a.b", payload) == 100.0


def test_the_default_is_quantised_too() -> None:
    assert measure("", {}, default=0.0001) == 1 / 1024
    assert measure("n", {}, default=1.0001) == 1.0


def test_measures_views() -> None:
    meter = Meter(Workload(field="n"))
    assert meter.measure(memoryview(b'{"n":3}')) == 3.0
    assert meter.measure(msgspec.Raw(b'{"n":3}')) == 3.0


@given(value=st.floats() | st.integers(), default=st.floats(2**-20, 2**40))
def test_quantised_is_always_exact_and_bounded(value: float, default: float) -> None:
    result = quantised(value, default)
    assert 1 / 1024 <= result <= MAX_WORKLOAD
    assert (result * 1024).is_integer()


@pytest.mark.parametrize(("most", "counts"), [(50.0, 50.0), (0.0, 5000.0), (2.0**40, 2.0**30)])
def test_a_claim_counts_for_no_more_than_the_route_lets(most: float, counts: float) -> None:
    meter = Meter(Workload(field="n", default=5.0, max=most))
    assert meter.measure(b'{"n": 1073741824}') == counts
    assert meter.measure(b'{"n": 7}') == 7.0


@given(
    claim=st.floats() | st.integers(), default=st.floats(2**-20, 2**40), most=st.floats(0, 2**40)
)
def test_no_claim_exceeds_the_maximum(claim: float, default: float, most: float) -> None:
    """Nor does it count for less than it says, up to the maximum."""
    work = Workload(field="n", default=default, max=most)
    result = Meter(work).measure(json.dumps({"n": claim}).encode())
    bound = max(work.most, 1 / 1024) + 1 / 2048
    assert 1 / 1024 <= result <= max(bound, quantised(default, default))
    assert (result * 1024).is_integer()
    if 0 < claim <= work.most:
        assert abs(result - claim) <= 1 / 1024


@given(payload=json_values, field=st.sampled_from(["", "n", "n.n", "a.b.c"]))
def test_any_payload_has_a_workload(payload: Any, field: str) -> None:
    assert 1 / 1024 <= measure(field, payload) <= MAX_WORKLOAD
    assert 1 / 1024 <= measure(field, {"n": payload, "a": payload}) <= MAX_WORKLOAD
