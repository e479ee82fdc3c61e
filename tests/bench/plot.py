"""Charts of a run's rows, for the documentation. Needs matplotlib (the extra ``bench``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.bench.table import COLUMNS, Row

_COLORS = {"straight": "#b8b8b8", "nginx": "#5b8fd9", "worker": "#d9662b", "pyworker": "#6a51a3"}
_NAMES = {"straight": "model server alone", "nginx": "nginx", "pyworker": "PyWorker"}


def draw(rows: Sequence[Row], directory: Path) -> list[Path]:
    """One chart for each unit in which at least two of those on the stand were measured, as PNG and
    as SVG; returns the files.
    """
    import matplotlib  # the only user of it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    shown = [row for row in rows if len(row.figures) > 1 and min(row.figures.values()) > 0]
    for unit in dict.fromkeys(row.unit for row in shown):
        some = [row for row in shown if row.unit == unit]
        figure, axes = pyplot.subplots(figsize=(9.5, 0.6 + 0.55 * len(some)), layout="constrained")
        names = [name for name in COLUMNS if any(name in row.figures for row in some)]
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            places = [at + number * height for at in range(len(some))]
            widths = [row.figures.get(name, 0.0) for row in some]
            label = _NAMES.get(name, name)
            bars = axes.barh(places, widths, height, label=label, color=_COLORS[name])
            figures = [f"{width:,.3g}" if width < 1000 else f"{width:,.0f}" for width in widths]
            axes.bar_label(bars, figures, padding=2, fontsize="x-small")
        middle = 0.4 - height / 2
        axes.set_yticks([at + middle for at in range(len(some))], [row.what for row in some])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(unit)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        for kind in ("png", "svg"):
            file = directory / f"bench_{unit.replace('/', '_per_')}.{kind}"
            figure.savefig(file, dpi=120, metadata={"Date": None} if kind == "svg" else None)
            written.append(file)
        pyplot.close(figure)
    return written
