"""The judgement of the model server: may requests be sent to it, is it ready, must it be restarted.

Events are method calls that carry ``now`` (``time.monotonic()`` seconds); each returns the commands
to carry out, in order. One start of the model server is a generation; within it:

    alive ──ready line (if one is configured)──▶ probed ──good probe──▶ healthy
                                                                          │ benchmark, if any and
                                                                          ▼ not done before
                                            unhealthy ◀──bad probes──▶ ready

Laws:

1. Requests are sent only while it is ready, and not from a refused connection to the next good
   probe.
2. One probe and one benchmark at a time. Each ``Probe`` is answered by exactly one
   ``probe_result``, within the hands' own time limit.
3. A benchmark that succeeded once is never repeated: a restart does not change the machine.
4. An error is reported as long as its cause lasts: a death or a failing probe until the next good
   probe, a failed benchmark until one succeeds, an error line until a ready line, or a good probe
   at least one probe interval later.
5. Wedged is only what answered once, fails its probe now, and for ``stall_timeout_s`` neither
   answered a probe nor made progress on any request; a model server that somebody else starts is
   reported as stalled, but never called wedged: nobody could restart it.
6. What concerns an earlier generation, or a benchmark that was stopped, does nothing.

Not known here: the clock, sockets, what a probe is (the health path, or a TCP connect where there
is none), and how a benchmark is made (``benchmark.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from backend_adapter.readiness_facts import Facts
from backend_adapter.readiness_words import (
    Awaits,
    Backend,
    BackendDown,
    BackendFailed,
    BackendUp,
    Command,
    Probe,
    Report,
    StartBenchmark,
    StopBenchmark,
    Verdict,
    Wake,
)
from supervisor.messages import LIFECYCLE, ChildState

#: ``state`` of a model server that somebody else starts.
EXTERNAL = "external"
#: Seconds between probes while it is not known to answer.
FAST_PROBE_S = 0.25
LAST_RETRY_S = 60.0

_ALIVE = (ChildState.STARTING, ChildState.READY, ChildState.UNHEALTHY, EXTERNAL)
#: The supervisor calls it so only after a verdict that it is healthy: its ready line was seen,
#: maybe by this process before it was restarted.
_SEEN_HEALTHY = (ChildState.READY, ChildState.UNHEALTHY)


class Readiness:
    """The model server's standing.

    ``ready_log``: whether a log line says that it has loaded. ``benchmark``: whether it is measured
    before it counts as ready. ``probe_every_s``, ``probe_failures``, ``stall_timeout_s``: settings
    of section ``model``. ``now``: when the worker started, for the load time of a model server that
    somebody else starts.
    """

    def __init__(
        self,
        *,
        ready_log: bool,
        benchmark: bool,
        probe_every_s: float,
        probe_failures: int,
        stall_timeout_s: float,
        now: float,
    ) -> None:
        self._ready_log = ready_log
        self._probe_every_s = probe_every_s
        self._probe_failures = probe_failures
        self._stall_timeout_s = stall_timeout_s
        self._started_at = now
        self._state: str = ChildState.WAITING
        self._generation = 0
        self._death = ""  #: why it last died; "" once it answers again
        self._last_progress_at = now
        # The load time runs from the first start since it was last ready.
        self._loading = False
        self._load_began_at = now
        self._probing = False
        self._void = False  #: the probe under way asks about a time that is over
        self._measured = not benchmark
        self._measuring = False
        self._attempt = 0
        self._benchmark_error = ""
        self._its = Facts(probe_at=now, benchmark_at=now)
        self._error_line = ""
        self._of_file = False  #: it is what the lifecycle of a worker.py said
        self._error_line_at = now
        self._said_backend: Backend | None = None
        self._said_report: Report | None = None
        self._said_wake: float | None = None

    # ------------------------------------------------------------------------------ events

    def model_state(
        self,
        state: str,
        generation: int,
        reason: str,
        now: float,
        measured: bool = False,
        started_at: float = 0.0,
    ) -> list[Command]:
        """The supervisor says where the process stands (a ChildState, or "external").

        ``reason``: why it is not running. ``measured``: an earlier life of this process has made
        the benchmark. ``started_at``: when it was started; 0: not known. Raises ValueError for a
        state that does not exist.
        """
        if state != EXTERNAL:
            state = ChildState(state)
        if generation < self._generation:
            return []
        begins = state in _ALIVE and (generation > self._generation or not self._alive)
        self._state = state
        self._generation = generation
        if state in (ChildState.BACKOFF, ChildState.FAILED):
            self._death = reason or "it died"
        self._measured = self._measured or measured
        commands: list[Command] = []
        if self._measuring and (begins or self._measured or not self._alive):
            self._measuring = False
            commands.append(StopBenchmark())
        if begins or not self._alive:
            self._void = self._probing
        if begins:
            self._its = Facts(probe_at=now, benchmark_at=now)
            if not self._loading:
                self._loading = True
                self._load_began_at = self._began_to_load(state, started_at, now)
        if state in _SEEN_HEALTHY:
            self._its.line_seen = True
            if self._its.answered_at is None:
                self._its.answered_at = now
        return commands + self._settle(now)

    def _began_to_load(self, state: str, started_at: float, now: float) -> float:
        if state in _SEEN_HEALTHY:
            return now  # it had loaded before this process lived
        return started_at or (self._started_at if state == EXTERNAL else now)

    def log_match(
        self, generation: int, kind: str, pattern: str, line: str, now: float
    ) -> list[Command]:
        """A line of its log contained a configured pattern; ``kind``: "ready" or "error"."""
        if generation != self._generation:
            return []
        if kind == "ready":
            self._error_line = ""
            if not self._its.line_seen:
                self._its.line_seen = True
                self._its.probe_at = now
        else:
            self._error_line = line.strip() or pattern
            self._of_file = pattern == LIFECYCLE
            self._error_line_at = now
        return self._settle(now)

    def probe_result(self, ok: bool, text: str, now: float) -> list[Command]:
        """The probe asked for has ended; ``text`` says what was wrong."""
        its = self._its
        self._probing = False
        if self._void:
            self._void = False
            its.probe_at = max(now, its.probe_at)
            return self._settle(now)
        if ok:
            its.good_at = its.answered_at = now
            its.failures = 0
            its.refused = False
            self._death = ""
            if now - self._error_line_at >= self._probe_every_s:
                self._error_line = ""
        else:
            its.failures += 1
            its.bad_text = text
        calm = self._healthy and not its.refused
        pause_s = self._probe_every_s if calm else min(FAST_PROBE_S, self._probe_every_s)
        its.probe_at = now + pause_s
        return self._settle(now)

    def connection_refused(self, now: float) -> list[Command]:
        """A request could not be sent: it is down until a probe that begins now says otherwise.

        Where the last such probe was good and still no request came through, the next one takes
        its time: probes and requests may go to different doors.
        """
        its = self._its
        if not self._healthy or its.refused:
            return []
        its.refused = True
        self._void = self._probing
        fruitless = self._last_progress_at <= its.refused_at
        pause_s = min(FAST_PROBE_S, self._probe_every_s) if fruitless else 0.0
        its.probe_at = max(now, its.refused_at + pause_s)
        its.refused_at = now
        return self._settle(now)

    def benchmark_done(self, attempt: int, now: float) -> list[Command]:
        """The measurement succeeded."""
        if not self._measuring or attempt != self._attempt:
            return []
        self._measuring = False
        self._measured = True
        self._benchmark_error = ""
        return self._settle(now)

    def benchmark_failed(self, attempt: int, reason: str, now: float) -> list[Command]:
        """The measurement failed; it is tried again after 1 s, doubling to 60 s."""
        if not self._measuring or attempt != self._attempt:
            return []
        self._measuring = False
        self._benchmark_error = reason
        self._its.benchmark_at = now + self._its.retry_s
        self._its.retry_s = min(2 * self._its.retry_s, LAST_RETRY_S)
        return self._settle(now)

    def progress(self, at: float) -> None:
        """The last byte of any running request, the benchmark's included, came at this time."""
        self._last_progress_at = max(self._last_progress_at, at)

    def tick(self, now: float) -> list[Command]:
        """The time of the last ``Wake`` has come, or any other."""
        self._said_wake = None  # the timer is spent, even if it fired a little early
        return self._settle(now)

    # --------------------------------------------------------------------------- standing

    @property
    def awaits(self) -> Awaits:
        """What comes next before it is ready."""
        if self._ready or not self._alive:
            return Awaits.NOTHING
        if not self._probed:
            return Awaits.LINE
        if self._its.good_at is None:
            return Awaits.PROBE
        measures = self._healthy and not self._benchmark_error
        return Awaits.BENCHMARK if measures else Awaits.NOTHING

    @property
    def _alive(self) -> bool:
        return self._state in _ALIVE

    @property
    def _probed(self) -> bool:
        return self._alive and (self._its.line_seen or not self._ready_log)

    @property
    def _failing(self) -> bool:
        return self._its.failures >= self._probe_failures

    @property
    def _healthy(self) -> bool:
        return self._probed and self._its.good_at is not None and not self._failing

    @property
    def _ready(self) -> bool:
        return self._healthy and self._measured

    @property
    def _judged(self) -> bool:
        """Enough was seen of this generation to say something about it."""
        return self._probed and (self._its.good_at is not None or self._failing)

    def _settle(self, now: float) -> list[Command]:
        """Return what follows from the facts and was not said yet."""
        self._its.stalled = self._stall_at() <= now
        if self._ready and self._loading:
            self._loading = False
            self._its.load_time_s = now - self._load_began_at
        return [*self._news(), *self._actions(now)]

    def _news(self) -> Iterator[Command]:
        backend = self._backend()
        if backend != self._said_backend:
            self._said_backend = backend
            yield backend
        if self._judged:
            verdict = self._verdict()
            if verdict != self._its.verdict:
                self._its.verdict = verdict
                yield verdict
        if self._said_report is None and self._probed and not self._judged:
            return  # this process may be new, not the model server: first look, then speak
        report = Report(self._generation, self._ready, self._error(), self._its.load_time_s)
        if report != self._said_report:
            self._said_report = report
            yield report

    def _actions(self, now: float) -> Iterator[Command]:
        deadlines: list[float] = []
        if self._probed and not self._probing:
            if now >= self._its.probe_at:
                self._probing = True
                yield Probe()
            else:
                deadlines.append(self._its.probe_at)
        if self._healthy and not self._measured and not self._measuring:
            if now >= self._its.benchmark_at:
                self._measuring = True
                self._attempt += 1
                yield StartBenchmark(self._attempt)
            else:
                deadlines.append(self._its.benchmark_at)
        if not self._its.stalled:
            deadlines.append(self._stall_at())
        at = min(deadlines, default=math.inf)
        if at not in (self._said_wake, math.inf):
            self._said_wake = at
            yield Wake(at)

    def _stall_at(self) -> float:
        """When it counts as stalled if nothing happens; inf: it is not failing."""
        if not self._probed or self._its.answered_at is None or not self._failing:
            return math.inf
        return max(self._last_progress_at, self._its.answered_at) + self._stall_timeout_s

    # ------------------------------------------------------------------------------- words

    def _backend(self) -> Backend:
        if self._state == ChildState.FAILED:
            return BackendFailed(self._end_text())
        if self._ready and not self._its.refused:
            return BackendUp()
        return BackendDown(self._why_down())

    def _why_down(self) -> str:
        if self._state == ChildState.BACKOFF:
            return self._end_text()
        if not self._alive:
            return f"the model server is not running ({self._state})"
        if self._its.answered_at is None:
            return "the model server is loading"
        if self._failing:
            return self._failing_text()
        if self._its.good_at is None:
            return "the model server was not looked at yet"
        if self._its.refused:
            return "the model server refuses connections"
        if self._benchmark_error:
            return self._benchmark_text()
        return "the model server is being benchmarked"

    def _verdict(self) -> Verdict:
        wedged = self._its.stalled and self._state != EXTERNAL
        reason = "" if self._ready else self._why_down()
        return Verdict(self._generation, self._healthy, self._ready, wedged, reason)

    def _error(self) -> str:
        parts: list[str] = []
        if self._death:
            parts.append(self._end_text())
        if self._alive and self._its.answered_at is not None and self._failing:
            parts.append(self._failing_text())
        if self._benchmark_error:
            parts.append(self._benchmark_text())
        if self._error_line:
            said = self._error_line
            parts.append(said if self._of_file else f"the model server's log says: {said}")
        return "; ".join(parts)

    def _end_text(self) -> str:
        if self._state == ChildState.FAILED:
            return f"the model server will not be started again: {self._death}"
        return f"the model server is down and is being started again: {self._death}"

    def _failing_text(self) -> str:
        if self._its.stalled:
            return (
                "the model server is stalled: no good probe and no progress for"
                f" {self._stall_timeout_s:g} s"
            )
        return f"the model server does not answer: {self._its.bad_text}"

    def _benchmark_text(self) -> str:
        return f"the model server's benchmark failed: {self._benchmark_error}"
