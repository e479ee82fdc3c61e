"""What a GPU's trouble means for the model server: stands between its judgement and the hands.

``readiness.py`` judges the model server by its process, its log and its probes. A GPU that cannot
be used is seen by none of these: the health path answers on. So every command of that judgement
passes here, and comes out as it is, or, while there is trouble, as it has to be.

Laws:

1. While there is trouble the model server is not ready, requests wait, and the error is told. What
   runs, runs on.
2. A fault is an unusable GPU: starting the model server again would not help, and cost its restart
   budget, so it is left alone, hung or not. When the fault ends, so does the trouble.
3. A hit has killed what the model server had on a GPU: it is started again (called wedged) once no
   request runs, or none has made progress for ``stall_timeout_s``, and no fault stands. The trouble
   ends with that process. A model server that somebody else starts cannot be started again by us:
   there it ends when it was seen failing its probe, and well again.
4. Only what changes is said.

Not known here: NVML, the clock, how a model server is started again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from backend_adapter.readiness import EXTERNAL
from backend_adapter.readiness_words import (
    Backend,
    BackendDown,
    BackendFailed,
    BackendUp,
    Command,
    Report,
    Verdict,
)
from supervisor.messages import ChildState

_RUNS = (ChildState.STARTING, ChildState.READY, ChildState.UNHEALTHY, EXTERNAL)


class GpuGate:
    """``stall_timeout_s``: setting of section ``model``."""

    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._fault = ""
        self._hit = ""
        self._hit_at = 0.0
        self._restart = False  #: nothing runs that could be harmed
        self._was_away = False  #: seen failing since the hit
        self._state: str = ChildState.WAITING
        self._generation = 0
        # What the judgement said last, and what came out.
        self._backend: Backend | None = None
        self._verdict: Verdict | None = None
        self._report: Report | None = None
        self._said: dict[str, Command] = {}

    @property
    def trouble(self) -> str:
        """What is wrong with the GPUs; "" when nothing is."""
        return "; ".join(filter(None, (self._fault, self._hit)))

    @property
    def pending(self) -> bool:
        """``look`` is asked for."""
        return bool(self._hit) and not self._restart

    # ------------------------------------------------------------------------------ events

    def passes(self, commands: Iterable[Command]) -> list[Command]:
        """The judgement's commands, as they are to be carried out."""
        rest: list[Command] = []
        for command in commands:
            match command:
                case BackendUp() | BackendDown() | BackendFailed():
                    self._backend = command
                case Verdict():
                    self._verdict = command
                    self._see(command)
                case Report():
                    self._report = command
                case _:
                    rest.append(command)
        return [*self._speak(), *rest]

    def fault(self, text: str) -> list[Command]:
        """Which GPUs cannot be used; "" when all can."""
        self._fault = text
        return list(self._speak())

    def hit(self, text: str, now: float) -> list[Command]:
        """What ran on a GPU is dead."""
        if self._state not in _RUNS:
            return []  # so is the model server
        if not self._hit:
            self._hit, self._hit_at = f"{text}; what ran on it must be started again", now
            self._restart = self._was_away = False
        return list(self._speak())

    def model_state(self, state: str, generation: int) -> None:
        """Where its process stands; told before the judgement is, whose commands pass next."""
        if generation > self._generation or state not in _RUNS:
            self._hit, self._verdict = "", None  # what was judged is gone
            self._said.pop("verdict", None)
        self._state, self._generation = state, max(generation, self._generation)

    def look(self, running: int, progress_at: float, now: float) -> list[Command]:
        """``running``: requests on the model server; ``progress_at``: the last byte of any."""
        stalled = now - max(progress_at, self._hit_at) >= self._stall_timeout_s
        if self.pending and not self._fault and (running == 0 or stalled):
            self._restart = True
        return list(self._speak())

    def _see(self, verdict: Verdict) -> None:
        if not self._hit or self._state != EXTERNAL:
            return
        if not verdict.healthy:
            self._was_away = True
        elif self._was_away:
            self._hit = ""

    # ------------------------------------------------------------------------------- words

    def _speak(self) -> Iterator[Command]:
        for name, command in (
            ("backend", self._backend_now()),
            ("verdict", self._verdict_now()),
            ("report", self._report_now()),
        ):
            if command is not None and self._said.get(name) != command:
                self._said[name] = command
                yield command

    def _backend_now(self) -> Backend | None:
        if self._backend is None or isinstance(self._backend, BackendFailed) or not self.trouble:
            return self._backend
        return BackendDown(self.trouble)

    def _verdict_now(self) -> Verdict | None:
        verdict = self._verdict
        if verdict is None or not self.trouble:
            return verdict
        restart = bool(self._hit) and self._restart and self._state != EXTERNAL
        wedged = (verdict.wedged or restart) and not self._fault
        return replace(verdict, ready=False, wedged=wedged, reason=self.trouble)

    def _report_now(self) -> Report | None:
        report = self._report
        if report is None or not self.trouble:
            return report
        error = "; ".join(filter(None, (self.trouble, report.error)))
        return replace(report, ready=False, error=error)
