"""Our own stderr, which must never block us: a terminal that was stopped, a pipe nobody reads.

Law: ``write`` returns at once. At most ``max_bytes`` wait; lines beyond that are dropped, counted,
and mentioned once there is room again. A daemon thread is the only one that touches the descriptor,
so a writer that is stuck for ever holds up neither the loop nor the end of the process.

A leaf: it knows nothing of what it writes.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque


class Console:
    """A stream of lines; it can stand where a text stream is asked for (``logging``)."""

    def __init__(self, fd: int = 2, max_bytes: int = 1 << 20) -> None:
        self._fd = fd
        self._max_bytes = max_bytes
        self._waiting: deque[bytes] = deque()
        self._held_bytes = 0  # waiting or being written
        self._unmentioned = 0  # dropped lines that the reader has not been told of
        self._closed = False
        self._changed = threading.Condition()
        #: lines that found no room, or nobody who reads
        self.dropped_lines = 0
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    def write(self, line: str) -> int:
        """Take one line (or several); an end is added when it has none. Never blocks."""
        data = line.encode("utf-8", "replace")
        if not data.endswith(b"\n"):
            data += b"\n"
        with self._changed:
            if self._closed or self._held_bytes + len(data) > self._max_bytes:
                self.dropped_lines += 1
                self._unmentioned += 1
            else:
                self._waiting.append(data)
                self._held_bytes += len(data)
                self._changed.notify()
        return len(line)

    def flush(self) -> None:
        """Nothing: lines leave by themselves, as soon as they can."""

    def close(self, deadline_s: float = 1.0) -> bool:
        """Take no more lines and write the waiting ones; False when that took too long."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting and not self._unmentioned:
                    return  # closed; what was dropped last is mentioned even if nothing follows
                lines, self._waiting = self._waiting, deque()
                held_bytes = sum(map(len, lines))
                if self._unmentioned:
                    lines.append(b"(%d lines dropped: too slow a reader)\n" % self._unmentioned)
                    self._unmentioned = 0
            written = self._put(b"".join(lines))
            with self._changed:
                self._held_bytes -= held_bytes
                if not written:
                    self.dropped_lines += len(lines)

    def _put(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody who shares the terminal made it non-blocking
                select.select([], [self._fd], [])
            except OSError:  # nobody reads it any more
                return False
        return True
