"""Where the supervisor's own words go: a terminal with one live row, or plain log lines.

``Terminal`` keeps one row (the start-up timeline) below everything else that is written, redraws it
when it changes, and lets go of it when it is finished. ``Plain`` turns the same words into log
lines. Neither ever blocks: both end in ``Console.write``.

They know nothing of what is said. rich is imported when the first styled row is drawn.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Protocol

#: Move to the row above and clear it.
_ERASE = "\x1b[1A\x1b[2K"
_log = logging.getLogger("supervisor")

Write = Callable[[str], object]


class Screen(Protocol):
    """What the timeline speaks to. Texts may hold rich's style tags, such as ``[green]``."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def show(self, parts: list[str]) -> None:
        """The live row: what is known so far."""

    def finish(self) -> None:
        """The live row is complete."""


class Terminal:
    """A terminal.

    Args:
        write: takes lines; never blocks.
        width: columns.
        color: styles may be used.
    """

    def __init__(self, write: Write, width: int, color: bool) -> None:
        self._write = write
        self._width = width
        self._color = color
        self._row = ""
        self._buffer = io.StringIO()
        self._render: Callable[[str], None] | None = None

    def write(self, line: str) -> int:
        """A line of somebody else's; it goes above the row."""
        if not self._row:
            self._write(line)
        else:
            self._write(f"{_ERASE}{line.rstrip(chr(10))}\n{self._row}")
        return len(line)

    def flush(self) -> None:
        """Nothing: lines leave by themselves. (Loggers ask for it.)"""

    def say(self, text: str) -> None:
        """One line that stays."""
        self.write(self._styled(text))

    def show(self, parts: list[str]) -> None:
        """The live row; it begins a new one where it would be wider than the terminal."""
        erase = _ERASE if self._row else ""
        row = " " + "   ".join(parts)
        if self._row and _plain_length(row) >= self._width:
            self.finish()
            row, erase = " " + parts[-1], ""
            parts[:-1] = []
        self._row = self._styled(row)
        self._write(erase + self._row)

    def finish(self) -> None:
        """What the row says stays."""
        self._row = ""

    def _styled(self, text: str) -> str:
        if self._render is None:
            from rich.console import Console

            console = Console(
                file=self._buffer, force_terminal=True, no_color=not self._color,
                width=self._width, highlight=False, legacy_windows=False,
            )  # fmt: skip
            self._render = lambda text: console.print(text, end="", soft_wrap=True)
        self._render(text)
        styled = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return styled


class Plain:
    """No terminal: the same words as log lines."""

    def say(self, text: str) -> None:
        """One log line."""
        _log.info("%s", _untagged(text).strip())

    def show(self, parts: list[str]) -> None:
        """The latest part only; the earlier ones were said."""
        self.say(parts[-1])

    def finish(self) -> None:
        """Nothing is live."""


def _untagged(text: str) -> str:
    from rich.markup import render

    return render(text).plain


def _plain_length(text: str) -> int:
    return len(_untagged(text))
