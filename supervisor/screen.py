"""Where the supervisor's own words go: a terminal with one live row, or plain log lines.

``Terminal`` keeps one row (the start-up timeline) below everything else that is written, redraws it
when it changes, and lets go of it when it is finished. ``Plain`` turns the same words into log
lines. Neither ever blocks: both end in ``Console.write``.

They know nothing of what is said. The few styles are written as they are: importing a library for
them would cost the supervisor 0.1 s and 8 MB for its whole life.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

#: Move to the row above and clear it.
_ERASE = "\x1b[1A\x1b[2K"
_GAP = "   "
_log = logging.getLogger("supervisor")


class Tone(enum.Enum):
    """How something is said; the value is its style (SGR)."""

    PLAIN = ""
    GOOD = "32"
    BAD = "31"
    QUIET = "2"
    LOUD = "1;32"


class Part(NamedTuple):
    """A few words and their tone."""

    text: str
    tone: Tone = Tone.PLAIN


class Screen(Protocol):
    """What the timeline speaks to."""

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """One line that stays."""

    def show(self, parts: list[Part]) -> None:
        """The live row: what is known so far, the newest last."""

    def finish(self) -> None:
        """The live row is complete."""


class Terminal:
    """A terminal; it can stand where ``logging`` asks for a text stream.

    Args:
        write: takes whole lines; never blocks.
        width: columns.
        color: styles may be used.
    """

    def __init__(self, write: Callable[[str], object], width: int, color: bool) -> None:
        self._write = write
        self._width = width
        self._color = color
        self._row = ""
        self._first = 0  # part that the row begins with; earlier ones are on rows above

    def write(self, line: str) -> int:
        """Somebody else's line: it goes above the row."""
        if self._row:
            self._write(f"{_ERASE}{line.removesuffix(chr(10))}\n{self._row}")
        else:
            self._write(line)
        return len(line)

    def flush(self) -> None:
        """Nothing: lines leave by themselves."""

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """One line that stays."""
        self.write(self._styled(Part(text, tone)))

    def show(self, parts: list[Part]) -> None:
        """The live row. What would be wider than the terminal begins a new one."""
        erase = _ERASE if self._row else ""
        shown = parts[self._first :]
        if len(shown) > 1 and 1 + len(_GAP.join(p.text for p in shown)) >= self._width:
            self._first, shown, erase = len(parts) - 1, shown[-1:], ""
        self._row = " " + _GAP.join(map(self._styled, shown))
        self._write(erase + self._row)

    def finish(self) -> None:
        """What the row says stays."""
        self._row, self._first = "", 0

    def _styled(self, part: Part) -> str:
        if not self._color or part.tone is Tone.PLAIN:
            return part.text
        return f"\x1b[{part.tone.value}m{part.text}\x1b[0m"


class Plain:
    """No terminal: the same words as log lines."""

    def __init__(self, log: logging.Logger = _log) -> None:
        self._log = log

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """One log line; an empty one is none."""
        if text.strip():
            self._log.log(logging.WARNING if tone is Tone.BAD else logging.INFO, "%s", text.strip())

    def show(self, parts: list[Part]) -> None:
        """The newest part; the others were said."""
        self.say(*parts[-1])

    def finish(self) -> None:
        """Nothing is live."""


class Both:
    """A terminal, and the log that keeps what it has shown."""

    def __init__(self, terminal: Terminal, log: Plain) -> None:
        self._screens: tuple[Screen, ...] = (terminal, log)

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """On both."""
        for screen in self._screens:
            screen.say(text, tone)

    def show(self, parts: list[Part]) -> None:
        """On both."""
        for screen in self._screens:
            screen.show(parts)

    def finish(self) -> None:
        """On both."""
        for screen in self._screens:
            screen.finish()
