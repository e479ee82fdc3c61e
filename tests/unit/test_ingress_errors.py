"""Error kinds and the bodies that clients read."""

from __future__ import annotations

import http
import json
import math

import pytest

from ingress.errors import KINDS, MAX_RETRY_AFTER_S, ErrorKind, Problem, sse_error


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_has_a_status_and_a_sentence(kind: ErrorKind) -> None:
    assert kind.status in {499, *http.HTTPStatus}
    assert kind.status >= 400
    assert kind.doc.endswith(".")
    assert kind.value == kind.name.lower()
    assert KINDS[str(kind)] is kind
    assert json.loads(Problem(kind).body()) == {"error": {"kind": kind.value, "message": kind.doc}}


def test_absent_fields_are_left_out_and_present_ones_are_not() -> None:
    problem = Problem(ErrorKind.QUEUE_FULL, "Full.", 12.5, request_idx=7)
    assert json.loads(problem.body()) == {
        "error": {"kind": "queue_full", "message": "Full.", "retry_after_s": 12.5, "request_idx": 7}
    }
    assert problem.status == 429
    assert str(problem) == "queue_full: Full."


@pytest.mark.parametrize(
    ("retry_after_s", "line"),
    [
        (0.0, b"retry-after: 1\r\n"),
        (-5.0, b"retry-after: 1\r\n"),
        (0.2, b"retry-after: 1\r\n"),
        (12.1, b"retry-after: 13\r\n"),
        (1e12, b"retry-after: %d\r\n" % MAX_RETRY_AFTER_S),
        (math.inf, b""),
        (math.nan, b""),
        (None, b""),
    ],
)
def test_retry_after_is_whole_seconds(retry_after_s: float | None, line: bytes) -> None:
    problem = Problem(ErrorKind.MODEL_DOWN, retry_after_s=retry_after_s)
    assert problem.header_lines() == b"content-type: application/json\r\n" + line
    assert ("retry_after_s" in json.loads(problem.body())["error"]) == bool(line)


def test_extra_keys_stand_beside_the_error_and_cannot_replace_it() -> None:
    extra = {"auth_data": {"signature": "missing parameter"}, "error": "mine"}
    body = json.loads(Problem(ErrorKind.MISSING_PARAMETER, extra=extra).body())
    assert body["auth_data"] == {"signature": "missing parameter"}
    assert body["error"]["kind"] == "missing_parameter"


def test_own_header_lines() -> None:
    problem = Problem(ErrorKind.METHOD_NOT_ALLOWED, headers=b"allow: POST\r\n")
    assert problem.header_lines() == b"content-type: application/json\r\nallow: POST\r\n"


def test_a_problem_can_be_raised() -> None:
    with pytest.raises(Problem, match="expired"):
        raise Problem(ErrorKind.EXPIRED)


def test_the_last_event_of_a_stream() -> None:
    event = sse_error(Problem(ErrorKind.MODEL_FAILED, "Two\nlines."))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:])["error"]["kind"] == "model_failed"
