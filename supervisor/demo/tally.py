"""What the demo model server counts.

A leaf. Its law: ``requests = running or waiting or held by a fault + finished + cancelled +
failed``; a request that was refused as malformed is counted apart. Tags let a test prove how often
each request came here: at most MAX_TAGS of them are remembered, further ones are only counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

MAX_TAGS = 10_000


class Tally:
    """Counters since the process began."""

    def __init__(self) -> None:
        self.requests = 0  #: understood and received
        self.finished = 0  #: answered to the end
        self.cancelled = 0  #: the client went away first
        self.failed = 0  #: ended by a fault
        self.refused = 0  #: malformed, or too early
        self.generations = 0  #: got a slot
        self.served_tokens = 0
        self.untracked = 0  #: requests whose tag did not fit any more
        self._received: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()

    def receive(self, tag: str) -> None:
        """A request came in; ``tag`` is "" when it has none."""
        self.requests += 1
        if not tag:
            return
        if tag in self._received or len(self._received) < MAX_TAGS:
            self._received[tag] += 1
        else:
            self.untracked += 1

    def finish(self, tag: str) -> None:
        """A received request was answered to the end."""
        self.finished += 1
        if tag in self._received:
            self._finished[tag] += 1

    def view(self) -> dict[str, Any]:
        """Everything, for ``/demo/stats``."""
        return {
            "requests": self.requests,
            "finished": self.finished,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "refused": self.refused,
            "generations": self.generations,
            "served_tokens": self.served_tokens,
            "untracked": self.untracked,
            "tags": {"received": dict(self._received), "finished": dict(self._finished)},
        }
