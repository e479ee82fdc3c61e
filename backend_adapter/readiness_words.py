"""Words of the model server's judgement: the commands that ``readiness.Readiness`` returns.

A leaf: frozen data, times in ``time.monotonic()`` seconds, reasons in the words of people.
"""

from __future__ import annotations

import enum

import msgspec


class Probe(msgspec.Struct, frozen=True):
    """Ask the model server whether it is well, and answer ``probe_result``."""


class StartBenchmark(msgspec.Struct, frozen=True):
    """Measure it, and answer ``benchmark_done`` or ``benchmark_failed`` with this attempt."""

    attempt: int


class StopBenchmark(msgspec.Struct, frozen=True):
    """Give up the measurement that runs; it needs no answer."""


class BackendUp(msgspec.Struct, frozen=True):
    """Requests may be sent."""


class BackendDown(msgspec.Struct, frozen=True):
    """Requests must wait."""

    reason: str


class BackendFailed(msgspec.Struct, frozen=True):
    """Requests need not wait: it will not be started again."""

    reason: str


class Verdict(msgspec.Struct, frozen=True):
    """Tell the supervisor (fields as in ``supervisor.messages.ModelVerdict``)."""

    generation: int
    healthy: bool
    ready: bool
    wedged: bool
    reason: str


class Report(msgspec.Struct, frozen=True):
    """Tell the reporter (fields as in ``reporter.messages.ModelReport``)."""

    generation: int
    ready: bool
    error: str
    load_time_s: float


class Wake(msgspec.Struct, frozen=True):
    """Call ``tick`` at this time; replaces the time given before."""

    at: float


class Awaits(enum.Enum):
    """What the model server's readiness waits for."""

    NOTHING = enum.auto()  #: it is ready; or does not run, or fails: the reasons say more
    LINE = enum.auto()  #: the log line, or the lifecycle, that says it has loaded
    PROBE = enum.auto()  #: the first good probe
    BENCHMARK = enum.auto()


Backend = BackendUp | BackendDown | BackendFailed
Command = Probe | StartBenchmark | StopBenchmark | Backend | Verdict | Report | Wake
