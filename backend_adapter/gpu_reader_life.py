"""The life of the process that asks NVML: when it is started, and when its silence is a fault.

Events are method calls that carry ``now`` (``time.monotonic()`` seconds); those that start or end
something return the commands to carry out.

Laws:

1. At most one reader at a time: the next is started after the last one has ended. One that the
   kernel does not let die is the last.
2. Silence is a fault: no answer for ``2 * every_s``, or for ``FIRST_S`` after its start, when the
   driver may still be waking up. The next word of any kind ends it.
3. Time in which we were not looking ourselves is not silence.
4. Where there is nothing to ask about and never was, there is no second try.

It must not know what the reader says of the devices (``gpu_judge.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from backend_adapter.gpu_words import KillReader, ReaderCommand, StartReader

#: The first answer may take so long: without a persistent driver every device is woken up.
FIRST_S = 60.0
#: A reader that is silent for so long beyond its patience is ended.
KILL_AFTER_S = 30.0
#: Longest pause before the next start; they double.
MAX_PAUSE_S = 60.0
#: ``tick`` comes every second; when it comes later than this, we did not run.
LATE_S = 3.0


class ReaderLife:
    """``every_s``: seconds between two readings."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._runs = False
        self._over = False  #: there is nothing to ask about
        self._answered = False  #: once, by any of them
        self._first = True  #: this one has not spoken yet
        self._killed = False
        self._heard_at = 0.0
        self._ticked_at = 0.0
        self._start_at = 0.0
        self._pause_s = every_s
        self._gone = ""
        self._silent = ""

    @property
    def silent(self) -> str:
        """The fault of silence; "" when there is none."""
        return self._silent

    @property
    def gone(self) -> str:
        """Why NVML cannot be asked; "" while it can."""
        return self._gone

    @property
    def over(self) -> bool:
        """Nothing will ever happen here."""
        return self._over

    def start(self, now: float) -> Sequence[ReaderCommand]:
        """Begin."""
        self._runs, self._first, self._killed = True, True, False
        self._heard_at = self._ticked_at = now
        return [StartReader()]

    def heard(self, now: float) -> None:
        """It has read every device."""
        self._answered, self._first = True, False
        self._heard_at = now
        self._pause_s = self._every_s
        self._silent = self._gone = ""

    def gave_up(self, text: str, absent: bool) -> None:
        """It says that NVML cannot be asked, and ends."""
        self._gone, self._silent = text, ""
        self._over = absent and not self._answered

    def ended(self, how: str, now: float) -> None:
        """The process is gone. ``how``: for people, where it gave no reason itself."""
        self._runs = False
        if not self._killed and not self._gone:
            self._gone = how
        self._start_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)

    def tick(self, now: float) -> Sequence[ReaderCommand]:
        """A second has passed."""
        if now - self._ticked_at > LATE_S:
            self._heard_at = max(self._heard_at, now)
        self._ticked_at = now
        if self._over:
            return ()
        if not self._runs:
            return self.start(now) if now >= self._start_at else ()
        patience_s = FIRST_S if self._first else 2 * self._every_s
        silence_s = now - self._heard_at
        if silence_s >= patience_s and not self._silent:
            self._silent = f"NVML did not answer in {patience_s:g} s"
        if silence_s >= patience_s + KILL_AFTER_S and not self._killed:
            self._killed = True
            return [KillReader()]
        return ()
