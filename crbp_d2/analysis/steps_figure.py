"""Scores against steps, several runs and published curves in one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from crbp_d2.analysis.figures import COLOURS, line_style, new_figure, plain, save_figure, styled
from crbp_d2.analysis.steps import PANOPTIC, Evaluated, StepScores

TITLES = {
    "F1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "IoU": "intersection over union",
    "PQ": "panoptic quality (PQ)",
    "PQ_th": "PQ of things",
    "PQ_st": "PQ of stuff",
    "mask_AP": "mask AP",
}


@dataclass(frozen=True)
class Curve:
    """One line of the figure.

    Attributes:
        label: for the legend.
        trained_steps: marked by a larger, filled point.
        entries: of `evaluate_steps`, ascending.
    """

    label: str
    trained_steps: int
    entries: Sequence[StepScores]


def curves_of(runs: Mapping[str, Evaluated]) -> list[Curve]:
    """The lines of several runs, by label, named after the run and, if it has several, the data
    set."""
    return [
        Curve(f"{label}, {name}" if len(run.scores) > 1 else label, run.trained_steps, entries)
        for label, run in runs.items()
        for name, entries in run.scores.items()
    ]


@styled()
def write_figure(
    path: Path, curves: Sequence[Curve], published: Mapping[str, Mapping[int, float]] | None = None
) -> None:
    """One panel a score, and one for the change of the state.

    Args:
        path: without ending; see `save_figure`.
        curves: with the same scores.
        published: label, which names the source -> step -> score, drawn dotted in the first panel.
    """
    names = list(curves[0].entries[0].scores)
    columns = 3
    figure, panels = new_figure(math.ceil((len(names) + 1) / columns), columns)
    for panel in panels[len(names) + 1 :]:
        panel.remove()
    for panel, name in zip(panels, names, strict=False):
        for index, curve in enumerate(curves):
            values = [one.scores[name] for one in curve.entries]
            _line(panel, index, curve, values)
        unit = "%" if name in PANOPTIC else "0 to 1"
        panel.set(xlabel="step", ylabel=f"{TITLES[name]}, {unit}")
    for index, (label, points) in enumerate((published or {}).items()):
        panels[0].plot(
            list(points),
            list(points.values()),
            color=COLOURS[(len(curves) + index) % len(COLOURS)],
            linestyle=":",
            marker="x" if len(points) < 10 else None,
            markersize=4,
            label=plain(label),
        )
    for panel, name in zip(panels, names, strict=False):
        # Below 0 and above the highest there is room for the points.
        top = panel.get_ylim()[1] * 1.06 if name in PANOPTIC else 1.06
        panel.set_ylim(-0.03 * top, top)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    moving = panels[len(names)]
    for index, curve in enumerate(curves):
        _line(moving, index, curve, [one.change or math.nan for one in curve.entries])
    moving.set(xlabel="step", ylabel="change of the state in the step", yscale="log")
    save_figure(figure, path)


def _line(panel: Axes, index: int, curve: Curve, values: Sequence[float]) -> None:
    steps = [one.step for one in curve.entries]
    style = line_style(index)
    panel.plot(steps, values, label=plain(curve.label), **style)
    if curve.trained_steps in steps:
        value = values[steps.index(curve.trained_steps)]
        panel.plot(
            [curve.trained_steps],
            [value],
            marker=style["marker"],
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=COLOURS[6],
            linestyle="none",
        )
