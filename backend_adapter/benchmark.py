"""The benchmark: what is sent to the model server to learn how fast it is, and what that says.

Responsible for the plan of one attempt: one warm-up request that does not count, then rounds of
requests sent together; the capacity is the best round's served workload per second (the public
PyWorker's measure). Events are method calls with ``now`` (monotonic seconds); they return the
commands to carry out.

Law: exactly one ``Done`` or ``Failed`` ends an attempt, unless it is cancelled; only what succeeded
counts; what belongs to an earlier batch, or comes after the end, does nothing. The hands cancel
what still runs of a batch when its time is over.

Not known here: payloads, sockets, the clock, and when an attempt is due (``readiness.py``).
"""

from __future__ import annotations

import msgspec


class SendBatch(msgspec.Struct, frozen=True):
    """Send ``count`` requests at once; answer ``result`` for each, or ``timeout`` for the rest."""

    batch: int  #: 0: the warm-up; then the number of the round
    count: int


class Done(msgspec.Struct, frozen=True):
    """The attempt succeeded."""

    max_perf: float  #: workload per second; 0: what was served counts as no work


class Failed(msgspec.Struct, frozen=True):
    """The attempt failed."""

    reason: str


Command = SendBatch | Done | Failed


class Benchmark:
    """One attempt: ``runs`` rounds of ``concurrency`` requests, after a warm-up if asked for."""

    def __init__(self, *, runs: int, concurrency: int, warmup: bool) -> None:
        self._runs = runs
        self._concurrency = concurrency
        self._batch = 0 if warmup else 1
        self._ended = False
        self._began_at = 0.0
        self._left = 0
        self._successes = 0
        self._workload = 0.0
        self._first_error = ""
        self._best = 0.0
        self._weightless = False  #: the last round was served, and counted as no work

    def start(self, now: float) -> Command:
        """Begin the attempt."""
        return self._send(now)

    def result(
        self, batch: int, ok: bool, workload: float, error: str, now: float
    ) -> Command | None:
        """One request of a batch has ended; ``error`` says why where it is not ``ok``."""
        if self._ended or batch != self._batch or self._left == 0:
            return None
        self._left -= 1
        if ok:
            self._successes += 1
            self._workload += workload
        elif not self._first_error:
            self._first_error = error
        if self._left:
            return None
        return self._finish_batch(now, last=self._batch == self._runs)

    def began(self, batch: int, now: float) -> None:
        """The requests of a batch leave only now: making them took time that is not theirs."""
        if batch == self._batch:
            self._began_at = now

    def timeout(self, batch: int, now: float) -> Command | None:
        """The time of a batch is over. What succeeded of it counts, and it is the last one."""
        if self._ended or batch != self._batch:
            return None
        if not self._first_error:
            self._first_error = "timed out"
        return self._finish_batch(now, last=self._batch > 0)

    def cancel(self) -> None:
        """Nobody wants the outcome any more."""
        self._ended = True

    def _send(self, now: float) -> SendBatch:
        self._began_at = now
        self._left = self._concurrency if self._batch else 1
        self._successes = 0
        self._workload = 0.0
        self._first_error = ""
        return SendBatch(self._batch, self._left)

    def _finish_batch(self, now: float, last: bool) -> Command:
        if not self._successes:
            name = f"round {self._batch}" if self._batch else "the warm-up"
            return self._end(Failed(f"{name} had no success: {self._first_error}"))
        elapsed_s = now - self._began_at
        if self._batch and elapsed_s > 0:
            self._best = max(self._best, self._workload / elapsed_s)
            self._weightless = self._workload == 0
        if not last:
            self._batch += 1
            return self._send(now)
        if self._best <= 0 and not self._weightless:
            return self._end(Failed("no round took a measurable time"))
        return self._end(Done(self._best))

    def _end(self, outcome: Done | Failed) -> Done | Failed:
        self._ended = True
        return outcome
