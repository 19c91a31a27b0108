"""What it saves, and costs, to stop the samples that have settled."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import Tensor, nn

from crbp_d2.analysis.outputs import Batch, find_recurrence
from crbp_d2.analysis.steps import fresh_copy, scores_of
from crbp_d2.analysis.timing import seconds_of
from crbp_d2.core import RecurrenceResult


@dataclass(frozen=True)
class Stopped:
    """One tolerance.

    Attributes:
        tolerance: `CRBP.SOLVER.TEST_TOLERANCE`; 0 runs all steps.
        scores: see `crbp_d2.analysis.steps.StepScores`.
        steps: mean over the images of a contour model, or the RoIs of a mask head; NaN without any.
        ratios: of the time of each batch to that of all steps.
    """

    tolerance: float
    scores: dict[str, float]
    steps: float
    ratios: list[float]


def evaluate_tolerances(
    model: Any,
    batches: Iterable[Batch],
    tolerances: Sequence[float],
    evaluators: Sequence[DatasetEvaluator],
) -> list[Stopped]:
    """Scores, steps and times of a model that stops samples at several tolerances.

    The tolerances take turns on every batch, so that what else the machine does disturbs all alike.

    Args:
        model: with one recurrence, in evaluation mode; left as it was.
        batches: mapped records.
        tolerances: above 0, or 0 for all steps, which are run in any case; repeated ones count
            once.
        evaluators: of `crbp_d2.analysis.steps.step_evaluators`.

    Returns:
        All steps first (tolerance 0), then the tolerances in their order.

    Raises:
        ConfigurationError: the model has no recurrence, or several, or one that can't stop.
        ValueError: no image was given.
    """
    recurrence = find_recurrence(model)
    usual = recurrence.solver
    wanted = list(dict.fromkeys([0.0, *tolerances]))
    for tolerance in wanted[1:]:
        # Refused here if it can't work, and not after the first batch.
        recurrence.set_test_tolerance(tolerance)
    of_each = {t: DatasetEvaluators([fresh_copy(one) for one in evaluators]) for t in wanted}
    seconds: dict[float, list[float]] = {tolerance: [] for tolerance in wanted}
    taken: dict[float, list[Tensor]] = {tolerance: [] for tolerance in wanted}
    current = 0.0

    def keep(_module: nn.Module, _inputs: object, result: RecurrenceResult) -> None:
        taken[current].append(result.diagnostics.steps.cpu())

    handle = recurrence.register_forward_hook(keep)
    try:
        for batch in batches:
            for current in wanted:
                recurrence.set_test_tolerance(current or None)
                outputs: list[Any] = []

                def predict(batch: Batch = batch, outputs: list[Any] = outputs) -> None:
                    with torch.no_grad():
                        outputs.extend(model(batch))

                seconds[current].append(seconds_of(predict))
                of_each[current].process(batch, outputs)
    finally:
        handle.remove()
        recurrence.solver = usual
    if not seconds[0.0]:
        raise ValueError("no image was given: the data set is empty")
    return [
        Stopped(
            tolerance,
            scores_of(of_each.pop(tolerance).evaluate()),
            float(torch.cat(taken[tolerance] or [torch.empty(0)]).mean()),
            [a / b for a, b in zip(seconds[tolerance], seconds[0.0], strict=True)],
        )
        for tolerance in wanted
    ]


def markdown(found: Sequence[Stopped]) -> Iterator[str]:
    """One line a tolerance: steps, median and quartiles of the time, scores."""
    names = list(found[0].scores)
    yield "| tolerance | steps | time, ratio to all steps (quartiles) | " + " | ".join(names) + " |"
    yield "|---|---|---|" + "---|" * len(names)
    for one in found:
        # Of a single batch the quartiles are its own value.
        ratios = one.ratios if len(one.ratios) > 1 else 2 * one.ratios
        spread = statistics.quantiles(ratios, n=4, method="inclusive")
        digits = 4 if "F1" in one.scores else 2
        cells = [
            f"{one.tolerance:g}" if one.tolerance else "all steps",
            f"{one.steps:.1f}",
            f"{spread[1]:.2f} ({spread[0]:.2f}-{spread[2]:.2f})",
            *(f"{value:.{digits}f}" for value in one.scores.values()),
        ]
        yield "| " + " | ".join(cells) + " |"
