"""Figures of one run, beside each other and beside the goals; for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

#: In the order in which they are shown.
COLUMNS = ("straight", "nginx", "worker", "pyworker")


@dataclass(frozen=True)
class Goal:
    """``of`` is to be at least, or at most, so many times ``beside``; beside "": so much."""

    value: float
    at_least: bool = True
    of: str = "worker"
    beside: str = ""


@dataclass
class Row:
    """One measurement of everything that takes part in it, by name."""

    what: str
    unit: str
    figures: dict[str, float]
    goals: list[Goal] = field(default_factory=list)

    def judged(self) -> list[dict[str, Any]]:
        """Each goal, what was reached, and whether that is enough. Not measured: left out."""
        found = []
        for goal in self.goals:
            if goal.of not in self.figures or (goal.beside and not self.figures.get(goal.beside)):
                continue
            reached = self.figures[goal.of] / (self.figures[goal.beside] if goal.beside else 1.0)
            name = f"{goal.of} / {goal.beside}" if goal.beside else goal.of
            met = reached >= goal.value if goal.at_least else reached <= goal.value
            found.append(
                {
                    "of": name,
                    "reached": round(reached, 3),
                    "goal": f"{'≥' if goal.at_least else '≤'} {goal.value:g}",
                    "met": met,
                }
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        figures = {name: _short(value) for name, value in self.figures.items()}
        return {"what": self.what, "unit": self.unit, **figures, "goals": self.judged()}


def beyond_straight(figures: dict[str, float]) -> dict[str, float]:
    """What each adds to the model server's own figure."""
    alone = figures["straight"]
    return {name: value - alone for name, value in figures.items() if name != "straight"}


def show(rows: Iterable[Row]) -> None:
    """Print them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("what", min_width=30)
    ratios = [f"÷ {name}" for name in ("nginx", "pyworker")]
    for name in (*COLUMNS, "unit", *ratios, "beside the goal"):
        table.add_column(name, justify="left" if name in ("unit", "beside the goal") else "right")
    for row in rows:
        marks = [
            f"{'✓' if each['met'] else '✗'} {each['of']} {each['reached']:g} ({each['goal']})"
            for each in row.judged()
        ]
        figures = [f"{_short(row.figures[n]):,}" if n in row.figures else "" for n in COLUMNS]
        ours = row.figures.get("worker", 0.0)
        alone = "added" not in row.what  # two small differences have no ratio worth a word
        besides = [row.figures.get(name, 0.0) if alone else 0.0 for name in ("nginx", "pyworker")]
        shares = [f"{_short(ours / other):g}" if ours and other else "" for other in besides]
        table.add_row(row.what, *figures, row.unit, *shares, "\n".join(marks))
    Console(width=170).print(table)


def _short(value: float) -> float:
    return round(value) if abs(value) >= 1000 else float(f"{value:.3g}")
