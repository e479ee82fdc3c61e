"""The threads that user hooks run in: one after the other, unless one of them takes long.

People write hooks for a program that runs one at a time. So there is one thread; when it has been
busy with one call for ``PATIENCE_S``, the calls that wait go on in another one, up to
``MAX_THREADS``. A call that never returns costs a thread; when all are lost, ``stuck`` says so.
A call that has not begun can be withdrawn, and is dropped once its time is over; one that has begun
cannot be stopped.

It must not know what a call does. Only the loop that made it may use it.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Seconds after which the calls behind a call are not left waiting for it.
PATIENCE_S = 0.2
MAX_THREADS = 16


@dataclass(slots=True, eq=False)
class Call:
    """One call that was submitted; for ``withdraw``."""

    work: Callable[[], Any]
    done: Callable[[Any], None]
    dropped: Callable[[], object]
    late_at: float  #: loop time after which it is not begun any more
    began_at: float = 0.0  #: loop time; 0: it waits
    thread: int = 0  #: identity of the thread that it is in
    told_late: bool = False


def _begun() -> None:
    """In place of work that has begun: it may hold a body."""


class HookThreads:
    """``submit`` work; its outcome comes back on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Call, None] = {}  # the oldest first
        self._running: dict[int, Call] = {}
        self._idle: list[DaemonThread] = []
        self._count = 0
        self._timer = loop.call_later(PATIENCE_S, self._look)

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return len(self._waiting)

    def late(self, limit_s: float) -> list[int]:
        """Identities of the threads that have been in one call for longer; each call once."""
        now, late = self._loop.time(), []
        for call in self._running.values():
            if not call.told_late and now - call.began_at > limit_s:
                call.told_late = True
                late.append(call.thread)
        return late

    def stuck(self, deadline_s: float) -> bool:
        """Every thread has been in one call for longer than this, and more wait."""
        now = self._loop.time()
        return (
            bool(self._waiting)
            and self._count >= MAX_THREADS
            and all(now - call.began_at > deadline_s for call in self._running.values())
        )

    def submit(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        *,
        wait_s: float = math.inf,
        dropped: Callable[[], object] = lambda: None,
    ) -> Call:
        """Run ``work``, which raises nothing, in its turn; then ``done(outcome)`` on the loop.

        ``wait_s``: when it has waited so long, it is not begun any more, and ``dropped()`` is
        called instead. The same for all, or those behind a patient one are dropped late.
        """
        call = Call(work, done, dropped, self._loop.time() + wait_s)
        self._waiting[call] = None
        self._go()
        return call

    def withdraw(self, call: Call) -> bool:
        """Nobody wants its outcome. False: it has begun, or ended, already."""
        if call not in self._waiting:
            return False
        del self._waiting[call]
        return True

    def close(self) -> None:
        """Begin nothing more."""
        self._timer.cancel()
        self._waiting.clear()

    def _look(self) -> None:
        self._timer = self._loop.call_later(PATIENCE_S, self._look)
        self._go()

    def _drop_late(self, now: float) -> None:
        while (call := next(iter(self._waiting), None)) is not None and call.late_at < now:
            del self._waiting[call]
            call.dropped()

    def _go(self) -> None:
        now = self._loop.time()
        self._drop_late(now)
        if any(now - call.began_at < PATIENCE_S for call in self._running.values()):
            return
        if not self._waiting or (not self._idle and self._count >= MAX_THREADS):
            return
        call = next(iter(self._waiting))
        del self._waiting[call]
        call.began_at = now
        if self._idle:
            thread = self._idle.pop()
        else:
            self._count += 1
            thread = DaemonThread(self._finished, self._loop)
        self._running[id(thread)] = call
        call.thread = thread.ident
        work, call.work = call.work, _begun
        thread.run(work)

    def _finished(self, thread: DaemonThread, outcome: Any) -> None:
        call = self._running.pop(id(thread))
        self._idle.append(thread)
        call.done(outcome)
        self._go()


class DaemonThread:
    """One daemon thread, so that a call that never returns cannot keep the process alive.

    ``finished``: called on the loop with the thread and what its work returned.
    """

    def __init__(
        self, finished: Callable[[DaemonThread, Any], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._finished = finished
        self._loop = loop
        self._work: Callable[[], Any] | None = None
        self._wake = threading.Semaphore(0)
        thread = threading.Thread(target=self._main, name="hook", daemon=True)
        thread.start()
        self.ident = thread.ident or 0

    def run(self, work: Callable[[], Any]) -> None:
        """Call ``work``, which raises nothing. The thread is idle."""
        self._work = work
        self._wake.release()

    def end(self) -> None:
        """Let it end. The thread is idle, and is not used again."""
        self._wake.release()

    def _main(self) -> None:
        while True:
            self._wake.acquire()
            work, self._work = self._work, None
            if work is None:
                return
            outcome = work()
            try:
                self._loop.call_soon_threadsafe(self._finished, self, outcome)
            except RuntimeError:
                return  # the loop is closed: the process ends
            del work, outcome  # an idle thread holds nobody's payload
