"""The table of a comparison: a line an arm, over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from crbp_d2.analysis.comparison import Comparison, Outcome
from crbp_d2.analysis.steps import scale_of


def markdown(comparison: Comparison, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line an arm: medians over the seeds, with the range of the scores at T."""
    score = comparison.score
    yield (
        f"| arm | {score} at T/2 | {score} at T (min-max) | 2T | 4T | "
        + "".join(f"{name} | " for name in comparison.also)
        + "change at T | at 4T | radius at T: median, 99 %, largest | parameters | minutes "
        + "| seeds |"
    )
    yield "|---" * (11 + len(comparison.also)) + "|"
    for label in comparison.arms:
        runs = [outcome for outcome in outcomes if outcome.label == label]
        if not runs:
            continue
        at_steps = zip(*(run.scores[score] for run in runs), strict=True)
        cells = [_median_of(values, _form(score)) for values in at_steps]
        cells[1] = _with_range(runs, score)
        cells += [_with_range(runs, name) for name in comparison.also]
        cells += [_median(runs, "change", 0, ".4f"), _median(runs, "change", 1, ".5f")]
        cells.append(", ".join(_median(runs, "radius", place, ".2f") for place in range(3)))
        cells.append(f"{runs[0].parameters:,}")
        cells.append(f"{statistics.median(run.minutes for run in runs):.1f}")
        cells.append(", ".join(str(run.seed) for run in sorted(runs, key=lambda run: run.seed)))
        yield f"| {label} | " + " | ".join(cells) + " |"


def _form(score: str) -> str:
    return ".3f" if scale_of(score) == 1 else ".1f"


def _with_range(runs: Sequence[Outcome], score: str) -> str:
    """The median at T with least and greatest of the seeds."""
    at_t = [run.scores[score][1] for run in runs]
    known = [value for value in at_t if not math.isnan(value)]
    form = _form(score)
    return _median_of(at_t, form) + (f" ({min(known):{form}}-{max(known):{form}})" if known else "")


def _median(runs: Sequence[Outcome], name: str, position: int, form: str) -> str:
    values = [getattr(run, name) for run in runs]
    if any(value is None for value in values):
        return "-"
    return _median_of([value[position] for value in values], form)


def _median_of(values: Sequence[float], form: str) -> str:
    """Of those that are numbers: some have nothing to score, or no RoI."""
    known = [value for value in values if not math.isnan(value)]
    return format(statistics.median(known), form) if known else "-"
