"""The threads that user hooks run in: one after the other, unless one of them takes long.

People write hooks for a program that runs one at a time. So there is one thread; when it has been
busy with one call for ``PATIENCE_S``, the calls that wait go on in another one, up to
``MAX_THREADS``. A call that never returns costs a thread; when all are lost, ``stuck`` says so.

It must not know what a call does. Only the loop that made it may use it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Seconds after which the calls behind a call are not left waiting for it.
PATIENCE_S = 0.2
MAX_THREADS = 16


@dataclass(slots=True)
class _Call:
    work: Callable[[], Any]
    done: Callable[[Any], None]
    began_at: float = 0.0  #: loop time; 0: it waits


class HookThreads:
    """``submit`` work; its outcome comes back on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[_Call] = deque()
        self._running: dict[int, _Call] = {}
        self._idle: list[_Thread] = []
        self._count = 0
        self._timer = loop.call_later(PATIENCE_S, self._look)

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return len(self._waiting)

    def stuck(self, deadline_s: float) -> bool:
        """Every thread has been in one call for longer than this, and more wait."""
        now = self._loop.time()
        return (
            bool(self._waiting)
            and self._count >= MAX_THREADS
            and all(now - call.began_at > deadline_s for call in self._running.values())
        )

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``work``, which raises nothing, in its turn; then ``done(outcome)`` on the loop."""
        self._waiting.append(_Call(work, done))
        self._go(patient=True)

    def close(self) -> None:
        """Begin nothing more."""
        self._timer.cancel()
        self._waiting.clear()

    def _look(self) -> None:
        self._timer = self._loop.call_later(PATIENCE_S, self._look)
        self._go(patient=True)

    def _go(self, patient: bool) -> None:
        now = self._loop.time()
        if patient and any(now - c.began_at < PATIENCE_S for c in self._running.values()):
            return
        if not self._waiting or (not self._idle and self._count >= MAX_THREADS):
            return
        call = self._waiting.popleft()
        call.began_at = now
        if self._idle:
            thread = self._idle.pop()
        else:
            self._count += 1
            thread = _Thread(self._finished, self._loop)
        self._running[id(thread)] = call
        thread.run(call.work)

    def _finished(self, thread: _Thread, outcome: Any) -> None:
        call = self._running.pop(id(thread))
        self._idle.append(thread)
        call.done(outcome)
        self._go(patient=True)


class _Thread:
    """One daemon thread, so that a call that never returns cannot keep the process alive."""

    def __init__(
        self, finished: Callable[[_Thread, Any], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._finished = finished
        self._loop = loop
        self._work: Callable[[], Any] | None = None
        self._wake = threading.Semaphore(0)
        threading.Thread(target=self._main, name="hook", daemon=True).start()

    def run(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._wake.release()

    def _main(self) -> None:
        while True:
            self._wake.acquire()
            assert self._work is not None
            work, self._work = self._work, None
            outcome = work()
            try:
                self._loop.call_soon_threadsafe(self._finished, self, outcome)
            except RuntimeError:
                return  # the loop is closed: the process ends
