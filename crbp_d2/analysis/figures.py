"""How figures look, and how they are saved: for print and for colour-blind readers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crbp_d2.data.storage import write_whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A8A8A")
"""The palette of Okabe and Ito (2008), which colour-blind readers tell apart, without its yellow,
which is too light for lines on white, and with a grey."""
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    # Text stays text in PDF files: journals ask for TrueType.
    "pdf.fonttype": 42,
}


def styled() -> Any:
    """A context, or decorator of a function that draws, in which new text has this style."""
    return mpl.rc_context(STYLE)


@styled()
def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure in this project's style and its axes, row by row.

    Args:
        rows: of axes.
        columns: of axes; 3.4 inches wide each, a column of a two-column page.
        options: for `Figure.subplots`.
    """
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def plain(label: str) -> str:
    """A label as it is: matplotlib would set what stands between dollars as an equation, and leave
    one that begins with _ out of a legend."""
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def line_style(index: int) -> dict[str, Any]:
    """Colour and marker of the line number `index`, which also differ in grey."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
    }


@styled()
def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write `path` with the endings `.png` (300 dots an inch) and `.pdf`, each whole or not at all.

    Args:
        figure: of `new_figure`.
        path: without ending; its folder is made.

    Returns:
        The two files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for ending in ("png", "pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=ending, dpi=300)
        written.append(path.with_name(f"{path.name}.{ending}"))
        write_whole(written[-1], content.getvalue())
    return written
