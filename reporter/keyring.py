"""Pure: when the engine's public key is fetched, and from which address.

- Unknown: at once, then after 0.2 s, doubling to 10 s, the addresses in turn.
- Known: once an hour. A key that does not answer to its signatures any more is suspect: it is
  fetched anew, at most once per 5 s however many suspect it.
- A failed fetch never forgets the key that is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
SUSPECT_EVERY_S = 5.0
REFRESH_EVERY_S = 3_600.0


class Keyring:
    """The key that is known, and the next fetch.

    Args:
        addresses: the engine's base URLs; none: nothing is ever fetched.
    """

    __slots__ = ("_addresses", "_due_at", "_failures", "_fetched_at", "in_flight", "pem")

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._due_at = -math.inf
        self._failures = 0  #: in a row
        self._fetched_at = -math.inf  #: when the last fetch began
        self.in_flight = False
        self.pem = ""  #: PEM text; "" while unknown

    def wake_at(self) -> float:
        """Monotonic time of the next fetch; inf while one is in flight."""
        return math.inf if self.in_flight or not self._addresses else self._due_at

    def step(self, now: float) -> str | None:
        """The address to fetch from now, or None. Answer with ``fetched`` or ``failed``."""
        if now < self.wake_at():
            return None
        self.in_flight = True
        self._fetched_at = now
        return self._addresses[self._failures % len(self._addresses)]

    def fetched(self, pem: str, now: float) -> bool:
        """The engine's key arrived. True: it is new, tell everyone."""
        self.in_flight = False
        self._failures = 0
        self._due_at = now + REFRESH_EVERY_S
        changed = pem != self.pem
        self.pem = pem
        return changed

    def failed(self, now: float) -> None:
        """No key came, or no valid one."""
        self.in_flight = False
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self._due_at = now + (max(pause_s, SUSPECT_EVERY_S) if self.pem else pause_s)

    def hasten(self) -> None:
        """Whoever has the key's other half was started anew: fetch it at once."""
        self._due_at = -math.inf

    def suspect(self) -> None:
        """Signatures stopped verifying, or somebody lacks the key."""
        if self.pem:
            self._due_at = min(self._due_at, self._fetched_at + SUSPECT_EVERY_S)
