"""Training curves of several runs in one figure, from what Detectron2 logged."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crbp_d2.analysis.figures import COLOURS, STYLE, line_style, new_figure, plain
from crbp_d2.analysis.published import final_scores
from crbp_d2.analysis.published.overlays import chosen_models, is_table, labelled, read_table
from crbp_d2.analysis.runs import is_checkpoint, require_different_labels, split_label
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_whole

logger = logging.getLogger(__name__)

WINDOW = 9
"""Logged lines that a running median covers."""

COLUMNS = 4

MOST_ITERATIONS = 10**12
"""Beyond it no training is."""
LARGEST = 1e300
"""Beyond it, and below infinity, a value is no loss; axes can't be drawn to it."""

Series = dict[int, float]
"""Iteration -> value."""


@dataclass(frozen=True)
class TrainingLog:
    """What one training logged.

    Attributes:
        label: what figures call it.
        batch_size: images an iteration, `SOLVER.IMS_PER_BATCH`.
        metrics: key of `metrics.json` -> its values, by ascending iteration. Iterations count from
            0, except for the evaluation after the last one, which is logged at their number.
    """

    label: str
    batch_size: int
    metrics: Mapping[str, Series]


@dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes:
        keys: of a run the first of these that it logged is drawn.
        label: of the vertical axis.
        smoothed: draw the running median, and faintly the values themselves.
        logarithmic: scale of the vertical axis.
        level: where to draw a horizontal line.
    """

    keys: tuple[str, ...]
    label: str
    smoothed: bool = True
    logarithmic: bool = False
    level: float | None = None

    def series(self, run: TrainingLog) -> Series:
        """What the panel shows of a run; empty if it logged none of it."""
        return run.metrics.get(self.key(run), {})

    def key(self, run: TrainingLog) -> str:
        """The key that is drawn; empty if there is none."""
        return next((key for key in self.keys if key in run.metrics), "")


PANELS = (
    Panel(("pathfinder/F1",), "F1", smoothed=False),
    Panel(("panoptic_seg/PQ",), "PQ (%)", smoothed=False),
    Panel(("total_loss",), "total loss"),
    # Detectron2 logs a loss that is the only one as the total alone.
    Panel(("loss_mask", "loss_sem_seg", "total_loss"), "task loss"),
    Panel(("loss_early",), "loss on an earlier step"),
    Panel(("recurrence/lcp",), "Lipschitz penalty, unweighted", logarithmic=True),
    Panel(("recurrence/contraction_ratio",), "contraction ratio", level=1.0),
    Panel(("recurrence/neumann_terms",), "Neumann terms"),
    Panel(("recurrence/residual",), "relative residual", logarithmic=True),
)
"""In the order they are drawn. To add one, enter it here."""

PHASE = "recurrence/phase"
"""Number of the phase of training."""

PUBLISHED_KEYS = {"PQ": "panoptic_seg/PQ", "F1": "pathfinder/F1"}


@dataclass(frozen=True)
class PublishedLines:
    """Published scores, drawn as horizontal lines, or learning curves.

    Attributes:
        key: of the panel they belong to.
        scores: label -> score, on the scale of that panel.
        curves: label -> images seen -> score.
    """

    key: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


def read_log(text: str) -> TrainingLog:
    """The log of a training.

    Args:
        text: its output folder, with `metrics.json` and `config.yaml`, or `LABEL=FOLDER`.

    Raises:
        ConfigurationError: a file is missing, or nothing was logged.
    """
    label, named = split_label(text)
    folder = named.parent if is_checkpoint(named) else named
    path = folder / "metrics.json"
    for needed in (path, folder / "config.yaml"):
        if not needed.is_file():
            raise ConfigurationError(
                f"{folder}: there is no {needed.name}; give the OUTPUT_DIR of a training"
            )
    metrics = read_metrics(path)
    if not metrics:
        raise ConfigurationError(
            f"{path}: nothing has been logged yet; Detectron2 logs every 20 iterations"
        )
    cfg = read_config(str(folder / "config.yaml"))
    return TrainingLog(label, cfg.SOLVER.IMS_PER_BATCH, metrics)


def read_metrics(path: Path) -> dict[str, Series]:
    """Key -> iteration -> value of a `metrics.json`, one JSON object a line.

    A resumed run repeats iterations: of each the last line counts. A line that was cut when a run
    was killed is left out with a warning; what the resumed run wrote behind it is kept.

    Raises:
        ConfigurationError: it is no text, or a value in it no number, or one beyond all that is
            logged.
    """
    lines: dict[int, dict[str, float]] = {}
    cut = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: no text ({error.reason}); remove it") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        # The objects are flat, so the last brace opens the last of them.
        whole = _parsed(line) or _parsed(line[max(line.rfind("{"), 0) :])
        if _parsed(line) is None:
            cut.append(str(number))
        if whole is not None:
            lines.update([_numbers(whole, f"{path}, line {number}")])
    if cut:
        logger.warning("%s: left out what was cut in line %s", path, ", ".join(cut))
    metrics: dict[str, Series] = {}
    for iteration in sorted(lines):
        for key, value in lines[iteration].items():
            metrics.setdefault(key, {})[iteration] = value
    return metrics


def _numbers(content: dict[str, Any], place: str) -> tuple[int, dict[str, float]]:
    """The iteration of a line, and its values."""
    for key, value in content.items():
        whole = key == "iteration"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            kind = "whole number" if whole else "number"
            raise ConfigurationError(f"{place}: {key} is {value!r}, no {kind}; remove the line")
        most = MOST_ITERATIONS if whole else LARGEST
        # Of a training that diverges, they are infinite.
        if most < abs(value) < math.inf:
            raise ConfigurationError(f"{place}: {key} is beyond {most:g}; remove the line")
    iteration = content.pop("iteration")
    return iteration, {key: float(value) for key, value in content.items()}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    # Of no JSON, of a number with more digits than Python reads, and of deep brackets.
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and "iteration" in content else None


def published_lines(text: str) -> PublishedLines:
    """Published scores of `NAME`, or of `NAME:MODEL,MODEL` only these models; or the learning
    curves of `FILE.csv`.

    Raises:
        ConfigurationError: an unknown name or model, or no table of scores by images.
    """
    if is_table(text):
        table = read_table(Path(text), "images")
        return PublishedLines(PUBLISHED_KEYS[table.score], curves=table.curves)
    name, _, models = text.partition(":")
    scores = final_scores(name)
    chosen = chosen_models(name, models, scores)
    key = PUBLISHED_KEYS["PQ" if name.startswith("panoptic") else "F1"]
    return PublishedLines(key, {labelled(model): scores[model] for model in chosen})


def running_median(values: npt.ArrayLike, window: int = WINDOW) -> npt.NDArray[np.float64]:
    """Median of each value and its neighbours, `(L,)` like the values.

    Args:
        values: `(L,)`.
        window: values it covers, odd; towards the ends as many as there are on both sides.
    """
    given = np.asarray(values, dtype=np.float64)
    result = np.empty_like(given)
    for index in range(len(given)):
        reach = min(window // 2, index, len(given) - 1 - index)
        result[index] = np.median(given[index - reach : index + reach + 1])
    return result


def draw_curves(
    runs: Sequence[TrainingLog],
    *,
    images: bool = False,
    window: int = WINDOW,
    published: PublishedLines | None = None,
) -> Figure:
    """One figure with a panel for each of `PANELS` that a run has values for. Where a phase of its
    training begins there is a dotted line in a run's colour.

    Args:
        runs: at least one, with different labels.
        images: count images seen instead of iterations.
        window: of the running median, in logged lines.
        published: scores to lay over the panel they belong to.

    Raises:
        ConfigurationError: two runs have the same label, there is nothing to draw, or published
            curves are laid over iterations.
    """
    if published is not None and published.curves and not images:
        raise ConfigurationError("published curves are of images seen: add --x images")
    require_different_labels([run.label for run in runs])
    panels = [panel for panel in PANELS if any(map(panel.series, runs))]
    if not panels:
        raise ConfigurationError("no run has logged anything that is drawn here")
    if published is not None and not any(published.key in panel.keys for panel in panels):
        raise ConfigurationError(
            f"no run has logged {published.key}, which the published scores would be laid over"
        )
    columns = min(COLUMNS, len(panels))
    figure, axes = new_figure(math.ceil(len(panels) / columns), columns, sharex=True)
    for unused in axes[len(panels) :]:
        unused.remove()
    with mpl.rc_context(STYLE):
        for axis, panel in zip(axes, panels, strict=False):
            for index, run in enumerate(runs):
                scale = run.batch_size if images else 1
                _draw_run(axis, panel, panel.series(run), scale, line_style(index), window)
            if published is not None and published.key in panel.keys:
                _draw_published(axis, published)
            for index, run in enumerate(runs):
                scale = run.batch_size if images else 1
                for begin in phase_begins(run):
                    axis.axvline(scale * begin, **_PHASE, color=line_style(index)["color"])
            _finish(axis, panel, [panel.series(run) for run in runs])
            axis.set_xlabel("images seen" if images else "iteration")
            axis.tick_params(labelbottom=True)
        handles = [
            Line2D([], [], label=plain(run.label), **line_style(index))
            for index, run in enumerate(runs)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(runs), columns))
    return figure


_PHASE: dict[str, Any] = {"linestyle": ":", "linewidth": 1, "alpha": 0.7}


def phase_begins(run: TrainingLog) -> list[int]:
    """The first logged iterations of the phases of a training after the first; none of a training
    without phases."""
    numbers = run.metrics.get(PHASE, {})
    return [
        iteration
        for (_, before), (iteration, number) in itertools.pairwise(numbers.items())
        if number != before
    ]


def _draw_run(
    axis: Axes, panel: Panel, series: Series, scale: int, style: dict[str, Any], window: int
) -> None:
    if not series:
        return
    places = scale * np.array(list(series))
    values = np.array(list(series.values()))
    if panel.smoothed:
        axis.plot(places, values, color=style["color"], alpha=0.3, linewidth=0.8)
        values = running_median(values, window)
    axis.plot(places, values, markevery=0.12 if len(series) > 12 else 1, **style)


def _draw_published(axis: Axes, published: PublishedLines) -> None:
    # From the end of the palette, so that they differ from the first runs.
    styles: list[dict[str, Any]] = [
        {"color": COLOURS[-1 - index % len(COLOURS)], "linestyle": (0, (1 + index, 2))}
        for index in range(len(published.scores) + len(published.curves))
    ]
    for (label, score), style in zip(published.scores.items(), styles, strict=False):
        axis.axhline(score, label=plain(label), linewidth=1.2, **style)
    for (label, points), style in zip(published.curves.items(), styles, strict=False):
        axis.plot(list(points), list(points.values()), label=plain(label), linewidth=1.2, **style)
    axis.legend(fontsize="small")


def _finish(axis: Axes, panel: Panel, shown: Iterable[Series]) -> None:
    """Label and scale of the vertical axis."""
    axis.set_ylabel(panel.label)
    if panel.level is not None:
        axis.axhline(panel.level, color="black", linestyle="--", linewidth=0.9)
    values = [value for series in shown for value in series.values()]
    positive = [value for value in values if 0 < value < math.inf]
    if panel.logarithmic and positive:
        axis.set_yscale("log")
        if 0 in values:
            # A penalty that has reached zero stays on the axis: below the decade of the smallest
            # positive value the scale is linear.
            first = math.floor(math.log10(min(positive)))
            last = math.floor(math.log10(max(positive)))
            axis.set_yscale("symlog", linthresh=10.0**first)
            stride = 1 + (last - first) // 6
            axis.set_yticks([0, *(10.0**power for power in range(first, last + 1, stride))])
            axis.set_ylim(bottom=0)


def write_csv(
    path: Path, runs: Sequence[TrainingLog], published: PublishedLines | None = None
) -> None:
    """Write `run,key,iteration,images,value` for all that `draw_curves` shows, not smoothed.

    Published scores have no iteration, final ones no images. The file is written whole or not at
    all.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["run", "key", "iteration", "images", "value"])
    writer.writerows(_rows(runs))
    if published is not None:
        writer.writerows(
            [label, published.key, "", "", score] for label, score in published.scores.items()
        )
        writer.writerows(
            [label, published.key, "", images, score]
            for label, points in published.curves.items()
            for images, score in points.items()
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.getvalue().encode())


def _rows(runs: Sequence[TrainingLog]) -> Iterator[tuple[str, str, int, int, float]]:
    for run in runs:
        for key in dict.fromkeys(panel.key(run) for panel in PANELS):
            for iteration, value in run.metrics.get(key, {}).items():
                yield run.label, key, iteration, iteration * run.batch_size, value
