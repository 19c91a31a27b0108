"""Scores at several steps and on several data sets, in one pass over each.

Backbone, proposals and boxes are computed once an image, and the recurrent head runs once, to the
last step. Panoptic models: PQ, PQ of things and of stuff, mask AP; Pathfinder models: F1, balanced
accuracy, precision, recall, IoU. Writes steps.csv, .png and .pdf. A steps.csv may stand in the
place of a RUN: what it holds is drawn, and not evaluated again.

examples:
  tools/analyze.py steps outputs/shapes_settling --steps 1-20
  a model trained on contours of 14 dashes, at N/2, N, 2N and 4N steps on 14, 20 and 25:
  tools/analyze.py steps outputs/pathfinder_14_hgru \\
      --dataset pathfinder_14_test pathfinder_20_test pathfinder_25_test
  several models in one figure, and one more:
  tools/analyze.py steps C-RBP=outputs/crbp BPTT=outputs/bptt --steps 1-80 --output figures
  tools/analyze.py steps figures/steps.csv RBP=outputs/rbp --steps 1-80 --output figures
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands.arguments import (
    add_batch_size,
    add_output,
    add_overrides,
    add_runs,
    shared_folder,
)
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.published import PER_STEP
from crbp_d2.analysis.published.overlays import Overlay, published_steps
from crbp_d2.analysis.runs import (
    Run,
    check_runs,
    is_labelled,
    load_run,
    require_different_labels,
    split_label,
)
from crbp_d2.analysis.steps import (
    CONTOUR,
    PANOPTIC,
    DifferingScoresError,
    Evaluated,
    evaluate_at_each,
    evaluate_steps,
    parse_steps,
    read_csv,
    require_alike,
    scale_of,
    step_evaluators,
    write_csv,
)
from crbp_d2.analysis.steps_figure import curves_of, write_figure
from crbp_d2.core import ConfigurationError
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_runs(parser)
    parser.add_argument(
        "--steps",
        help="such as 1-30, or N,2N,4N, where N is what a run was trained for "
        "(default: N/2,N,2N,4N)",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="default: DATASETS.TEST of each run",
    )
    add_batch_size(parser)
    parser.add_argument(
        "--published",
        metavar="NAME[:MODEL,...]",
        help=f"lay published curves over them: {' or '.join(PER_STEP)}, or FILE.csv with the "
        "columns source, model, step and F1 (0..1) or PQ (%%)",
    )
    parser.add_argument(
        "--check-repeated",
        action="store_true",
        help="also evaluate every step by itself; scores that differ by more than rounding are an "
        "error; prints the ratio of the times",
    )
    add_output(parser)
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    published = published_steps(arguments.published) if arguments.published else None
    folder = shared_folder(arguments)
    trained = [text for text in arguments.runs if split_label(text)[1].suffix != ".csv"]
    read = [_read(text) for text in arguments.runs if text not in trained]
    labels = [label for found in read for label in found]
    require_different_labels([*labels, *(split_label(text)[0] for text in trained)])
    evaluated = {label: one for found in read for label, one in found.items()}
    if len({one.names for one in evaluated.values()}) > 1:
        raise ConfigurationError(_OF_TWO_KINDS)
    asked = (arguments.steps, arguments.dataset, arguments.opts, arguments.check_repeated)
    if not trained and any(asked):
        raise ConfigurationError(
            "only tables were given: --steps, --dataset, --check-repeated and --opts are for runs "
            "that are evaluated"
        )
    for table in evaluated.values():
        _require_kind(published, table.names)
    check_runs(trained, arguments.opts, data_sets=arguments.dataset)
    notes: list[str] = []
    for text in trained:
        one = load_run(text, arguments.opts, data_sets=arguments.dataset)
        names = CONTOUR if is_pathfinder(one.data_set) else PANOPTIC
        if any(other.names != names for other in evaluated.values()):
            raise ConfigurationError(_OF_TWO_KINDS)
        _require_kind(published, names)
        evaluated[one.label] = _evaluate(one, arguments, notes)
        # What is done is kept, should a later one fail.
        _write(folder, evaluated, published)
    if not trained:
        _write(folder, evaluated, published)
    lines = [*_table(evaluated), "", *notes, f"Scores and figure: {folder}/steps.*"]
    say("\n".join(lines) + "\n")


def _write(folder: Path, evaluated: Mapping[str, Evaluated], published: Overlay | None) -> None:
    write_csv(folder / "steps.csv", evaluated)
    curves = published.curves if published else None
    write_figure(folder / "steps", curves_of(evaluated), curves)


def _require_kind(published: Overlay | None, names: Sequence[str]) -> None:
    if published and published.score not in names:
        raise ConfigurationError(
            f"--published has {published.score}, and the runs have {', '.join(names)}"
        )


_OF_TWO_KINDS = "contour and panoptic models have no scores in common: draw them apart"


def _read(text: str) -> dict[str, Evaluated]:
    """The runs of `steps.csv` or, if it holds one, `LABEL=steps.csv`."""
    label, path = split_label(text)
    found = read_csv(path)
    if not is_labelled(text):
        return found
    if len(found) > 1:
        raise ConfigurationError(
            f"{text}: the file holds {', '.join(found)}, which have their labels there; leave "
            f"{label}= out"
        )
    return dict(zip([label], found.values(), strict=True))


def _evaluate(one: Run, arguments: argparse.Namespace, notes: list[str]) -> Evaluated:
    """Scores of a run; what there is to say of the way to them is added to the notes."""
    find_recurrence(one.model)
    usual = "N/2,N,2N,4N" if one.trained_steps > 1 else "N,2N,4N"
    steps = parse_steps(arguments.steps or usual, one.trained_steps)
    scores = {}
    for name in one.data_sets:
        evaluators = step_evaluators(name)
        loader = scoring_batches(one.cfg, name, arguments.batch_size)
        begin = time.perf_counter()
        found = evaluate_steps(one.model, tqdm(loader, f"{one.label}, {name}"), steps, evaluators)
        taken = time.perf_counter() - begin
        if arguments.check_repeated:
            begin = time.perf_counter()
            repeated = evaluate_at_each(one.model, loader, tqdm(steps, "repeated"), evaluators)
            ratio = (time.perf_counter() - begin) / taken
            try:
                worst = require_alike(name, found, repeated)
            except DifferingScoresError as error:
                sys.exit(f"\n{error}")
            notes.append(
                f"{one.label}, {name}: one pass took {taken:.1f} s, an evaluation for every step "
                f"{ratio:.1f} times as long; largest difference of a score "
                f"{worst.size * scale_of(worst.score):.2g}"
            )
        scores[name] = found
    return Evaluated(one.trained_steps, scores)


def _table(evaluated: Mapping[str, Evaluated]) -> list[str]:
    names = next(iter(evaluated.values())).names
    rows = [
        [label, name, one.step, *one.scores.values(), one.change]
        for label, found in evaluated.items()
        for name, entries in found.scores.items()
        for one in entries
    ]
    heads = ["run", "data set", "step", *names, "change"]
    forms = ("", "", "d", *[".4f" if names == CONTOUR else ".2f"] * len(names), ".5f")
    return tabulate(rows, heads, "pipe", floatfmt=forms, disable_numparse=[0, 1]).splitlines()
