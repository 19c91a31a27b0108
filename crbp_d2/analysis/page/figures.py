"""The figures that other commands left in the folders of runs and of the page, as HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from crbp_d2.analysis.page.encode import figure_png
from crbp_d2.analysis.runs import Run
from crbp_d2.core import ConfigurationError
from crbp_d2.zoo import in_package

FIGURES = {
    "curves.png": (
        "Training curves",
        "Line charts of losses and scores against the iteration of training",
        "tools/analyze.py curves",
    ),
    "steps.png": (
        "Scores at every step",
        "Line charts of scores over the data set and of the relative change of the state against "
        "the number of steps",
        "tools/analyze.py steps",
    ),
    "state_space.png": (
        "State space",
        "The path of the state from step to step, projected to two dimensions",
        "tools/analyze.py states",
    ),
    "stability.png": (
        "Stability",
        "Charts of how far the state moves and whether it settles",
        "tools/analyze.py stability",
    ),
}
"""Name of a file -> title, what it shows, and the command that makes it."""

_PACKAGED = (
    '<p class="absent"><b>{}</b> is a model of the package, which keeps no figures: for those of '
    "several runs together call <code>tools/analyze.py steps</code> or <code>states</code> with "
    "the folder of this page as <code>--output</code>.</p>"
)


def figures_html(run: Run) -> str:
    """The figures of a run, its verdict, and which command makes those that are not there.

    Raises:
        ConfigurationError: a file is there, but can't be read.
    """
    if in_package(run.folder):
        return _PACKAGED.format(escape(run.label))
    shown = [name for name in FIGURES if (run.folder / name).is_file()]
    commands = [command for name, (_, _, command) in FIGURES.items() if name not in shown]
    makers = ", ".join(f"<code>{command}</code>" for command in commands)
    label = escape(run.label)
    verdict = _verdict(run.folder / "stability.json")
    if not shown and not verdict:
        return f'<p class="absent"><b>{label}</b> has none yet: run {makers}.</p>'
    parts = [f"<h3>{label}</h3>"]
    if verdict:
        parts.append(f'<p class="verdict">{escape(verdict)}</p>')
    if shown:
        figures = "".join(_figure(run.folder, name, run.label) for name in shown)
        parts.append(f'<div class="figures">{figures}</div>')
    if makers:
        parts.append(f'<p class="absent">For more, run {makers}.</p>')
    return "".join(parts)


def shared_figures_html(folder: Path, runs: Sequence[Run]) -> str:
    """The figures about several runs together that commands left in the folder of the page; empty
    where there is none, or one run alone."""
    own = {run.folder.resolve() for run in runs}
    if len(runs) < 2 or folder.resolve() in own:
        return ""
    shown = "".join(
        _figure(folder, name, "All runs") for name in FIGURES if (folder / name).is_file()
    )
    return f'<h3>Together</h3><div class="figures">{shown}</div>' if shown else ""


def _figure(folder: Path, name: str, label: str) -> str:
    title, shows, _ = FIGURES[name]
    alt = escape(f"{label}: {shows}.")
    source, width, height = figure_png(folder / name)
    return (
        f'<figure><div><img src="{source}" width="{width}" height="{height}" alt="{alt}" '
        f'loading="lazy"></div><figcaption>{title}</figcaption></figure>'
    )


def _verdict(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["verdict"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f'{path}: has no line of text "verdict"; make it again with tools/analyze.py stability'
        ) from error
