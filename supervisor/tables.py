"""Tables for people on stdout: rich on a terminal, plain columns elsewhere.

Only the commands that print and end use it; rich is imported when one of them does.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Columns where there is no terminal: nothing is to be cut or wrapped for a pipe.
_PIPE_WIDTH = 500


class Tables:
    """Prints; without styles when ``color`` is False or stdout is no terminal."""

    def __init__(self, color: bool) -> None:
        from rich.console import Console

        console = Console(no_color=not color, highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = _PIPE_WIDTH
        self._console = console

    def line(self, text: str, style: str = "") -> None:
        """One line."""
        self._console.print(text, style=style or None)

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Names and values, one pair a line."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        for name, value in facts:
            grid.add_row(name, value)
        self._console.print(grid)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table with an empty line before and after it."""
        from rich.table import Table

        table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)
        self._console.print()
