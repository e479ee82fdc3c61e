"""What the judgement of the model server knows of one start of it; ``readiness.py`` keeps it.

A leaf: data, times in ``time.monotonic()`` seconds.
"""

from __future__ import annotations

import math

import msgspec

from backend_adapter.readiness_words import Verdict

FIRST_RETRY_S = 1.0  #: before a failed benchmark is tried again; doubles each time


class Facts(msgspec.Struct):
    """What is known of one generation."""

    probe_at: float  #: when it is probed next
    benchmark_at: float  #: not measured before
    retry_s: float = FIRST_RETRY_S
    line_seen: bool = False
    good_at: float | None = None  #: last good probe of this process
    answered_at: float | None = None  #: last good probe, or when this process heard of one before
    failures: int = 0  #: bad probes since
    bad_text: str = ""
    refused: bool = False  #: a connection was refused after the last good probe
    refused_at: float = -math.inf  #: when that last began
    stalled: bool = False
    load_time_s: float = 0.0
    verdict: Verdict | None = None  #: what the supervisor was told
