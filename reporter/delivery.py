"""Pure: where and when one kind of post goes, over addresses that fail.

Law: one post at a time. An address gets ``tries`` tries, ``retry_s`` apart, then the next one's
turn comes; when all have failed, the round begins again after a pause that doubles up to 30 s.
What is posted is not this module's business.

The first address is the preferred one: after ``HOME_AFTER_S`` on another it is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MAX_PAUSE_S = 30.0
HOME_AFTER_S = 60.0


class Delivery:
    """The turn-taking of one kind of post.

    Args:
        addresses: base URLs in order of preference; none: nothing is ever due.
        tries: posts to one address before the next one's turn.
        retry_s: seconds between two tries.
    """

    __slots__ = (
        "_addresses",
        "_due_at",
        "_failed_addresses",
        "_home_at",
        "_index",
        "_retry_s",
        "_tries",
        "_tries_left",
        "failed",
        "in_flight",
        "posted",
    )

    def __init__(self, addresses: Sequence[str], tries: int, retry_s: float) -> None:
        self._addresses = tuple(addresses)
        self._tries = tries
        self._retry_s = retry_s
        self._index = 0
        self._tries_left = tries
        self._failed_addresses = 0  #: in a row
        self._home_at = 0.0
        self._due_at = -math.inf
        self.in_flight = False
        self.posted = 0  #: posts that were accepted
        self.failed = 0  #: posts that were not

    @property
    def due_at(self) -> float:
        """Monotonic time from which a post may begin; inf while one is in flight."""
        return math.inf if self.in_flight or not self._addresses else self._due_at

    @property
    def has_addresses(self) -> bool:
        """There is somebody to post to."""
        return bool(self._addresses)

    def begin(self, now: float) -> str:
        """A post goes out now; returns its address."""
        if self._index and self._tries_left == self._tries and now >= self._home_at:
            self._index = 0
            self._home_at = now + HOME_AFTER_S
        self.in_flight = True
        return self._addresses[self._index]

    def succeeded(self) -> None:
        """The post was accepted."""
        self.in_flight = False
        self.posted += 1
        self._tries_left = self._tries
        self._failed_addresses = 0
        self._due_at = -math.inf

    def failed_at(self, now: float) -> None:
        """The post was not accepted, or nobody knows."""
        self.in_flight = False
        self.failed += 1
        self._tries_left -= 1
        if self._tries_left:
            self._due_at = now + self._retry_s
            return
        self._tries_left = self._tries
        self._failed_addresses += 1
        self._index = (self._index + 1) % len(self._addresses)
        self._home_at = now + HOME_AFTER_S
        rounds, rest = divmod(self._failed_addresses, len(self._addresses))
        pause_s = min(MAX_PAUSE_S, max(1.0, self._retry_s) * 2.0 ** min(rounds - 1, 5))
        self._due_at = now if rest else now + pause_s

    def hasten(self) -> None:
        """Whatever pause is running ends."""
        self._due_at = -math.inf
