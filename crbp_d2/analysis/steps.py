"""Scores of a model at every step, in one pass over the data."""

from __future__ import annotations

import copy
import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from crbp_d2.analysis.instances import InstanceEvaluator, instance_scores
from crbp_d2.analysis.outputs import Batch, find_recurrence, outputs_at
from crbp_d2.config import require_few_steps
from crbp_d2.core import ConfigurationError
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.data.storage import write_whole
from crbp_d2.evaluation import PanopticEvaluator
from crbp_d2.evaluation.pathfinder import PathfinderEvaluator

PANOPTIC = ("PQ", "PQ_th", "PQ_st", "mask_AP")
CONTOUR = ("F1", "balanced_accuracy", "precision", "recall", "IoU")
ROUNDING = 1e-4
"""Largest difference of a score by rounding, in parts of its range: a unit of the last digit that
is shown. One pass and a run for each step do the same sums in the same order, so that on a CPU
their scores are the same numbers. Where a GPU sums in another order, logits move in their last
digits, and of a million pixels a few lie that near to the threshold."""


@dataclass(frozen=True)
class StepScores:
    """One step of a model.

    Attributes:
        step: 1, 2, ...
        scores: `CONTOUR`, pooled over pixels, in 0..1; or `PANOPTIC`, in percent, NaN for a kind
            that does not occur.
        change: mean over images (mask heads: RoIs) of `|h_t - h_{t-1}| / |h_t|`; NaN without any.
    """

    step: int
    scores: dict[str, float]
    change: float


@dataclass(frozen=True)
class Evaluated:
    """A model at several steps.

    Attributes:
        trained_steps: `N`.
        scores: data set -> `evaluate_steps`, of the same kind.
    """

    trained_steps: int
    scores: dict[str, list[StepScores]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of its scores: `CONTOUR` or `PANOPTIC`."""
        return tuple(next(iter(self.scores.values()))[0].scores)


def step_evaluators(
    dataset_name: str, *, tasks: Sequence[str] = ("segm",), partial: bool = False
) -> list[DatasetEvaluator]:
    """The evaluators whose scores are taken at every step; see `scores_of`.

    Args:
        dataset_name: registered.
        tasks: of instances, see `InstanceEvaluator`.
        partial: score the images that are processed, which need not be all.

    Raises:
        ConfigurationError: the data set is neither of Pathfinder nor a panoptic one.
    """
    if is_pathfinder(dataset_name):
        return [PathfinderEvaluator(distributed=False)]
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") != "coco_panoptic_seg":
        raise ConfigurationError(
            f"DATASETS.TEST: {dataset_name} is neither a Pathfinder nor a panoptic data set"
        )
    evaluators: list[DatasetEvaluator] = [PanopticEvaluator(dataset_name, partial=partial)]
    if metadata.thing_dataset_id_to_contiguous_id:
        evaluators.append(InstanceEvaluator(dataset_name, tasks=tasks, partial=partial))
    return evaluators


Results = Mapping[str, Mapping[str, float]]
"""Of Detectron2's evaluators: task -> score -> value."""


def scores_of(results: Results) -> dict[str, float]:
    """The scores of `StepScores`, from the results of `step_evaluators`."""
    if "pathfinder" in results:
        return {name: float(results["pathfinder"][name]) for name in CONTOUR}
    found = {name: float(results["panoptic_seg"][name]) for name in PANOPTIC[:3]}
    return {**found, "mask_AP": instance_scores(results)["mask_AP"]}


def evaluate_steps(
    model: Any,
    batches: Iterable[Batch],
    steps: Sequence[int],
    evaluators: Sequence[DatasetEvaluator],
    scores: Callable[[Results], dict[str, float]] = scores_of,
) -> list[StepScores]:
    """Scores of a model at several steps; see `outputs_at` for what is computed once.

    Args:
        model: see `outputs_at`.
        batches: mapped records.
        steps: at least 1, in any order.
        evaluators: of `step_evaluators`; every step gets copies, which share the ground truth.
        scores: those that are taken of the results.

    Returns:
        One entry a step, ascending.

    Raises:
        ConfigurationError: no step, a step below 1, or a model of another kind.
        ValueError: no image was given.
    """
    wanted = sorted(set(steps))
    of_step = {step: DatasetEvaluators([fresh_copy(one) for one in evaluators]) for step in wanted}
    changes: dict[int, list[torch.Tensor]] = {step: [] for step in wanted}
    empty = True
    for batch in batches:
        empty = False
        for one in outputs_at(model, batch, wanted):
            of_step[one.step].process(batch, one.outputs)
            changes[one.step].append(one.change.cpu())
    if empty:
        raise ValueError("no image was given: the data set is empty")
    return [
        StepScores(
            step,
            scores(of_step.pop(step).evaluate()),
            float(torch.cat(changes[step]).mean()),
        )
        for step in wanted
    ]


def evaluate_at_each(
    model: Any,
    batches: Iterable[Batch],
    steps: Iterable[int],
    evaluators: Sequence[DatasetEvaluator],
) -> list[dict[str, float]]:
    """The scores of `evaluate_steps` the long way: the whole model on all data for every step.

    Args:
        model: with one recurrence, in evaluation mode.
        batches: can be run through once a step.
        steps: at least 1.
        evaluators: of `step_evaluators`.

    Returns:
        The scores of each step.
    """
    recurrence = find_recurrence(model)
    usual, scores = recurrence.test_steps, []
    try:
        for step in steps:
            recurrence.test_steps = step
            evaluator = DatasetEvaluators([fresh_copy(one) for one in evaluators])
            for batch in batches:
                with torch.no_grad():
                    evaluator.process(batch, model(batch))
            scores.append(scores_of(evaluator.evaluate()))
    finally:
        recurrence.test_steps = usual
    return scores


def scale_of(score: str) -> int:
    """The largest value of a score of `CONTOUR` or `PANOPTIC`; the smallest is 0."""
    return 1 if score in CONTOUR else 100


@dataclass(frozen=True)
class Difference:
    """Of a score, taken in two ways.

    Attributes:
        step: 1, 2, ...
        score: its name.
        one, other: its values.
    """

    step: int
    score: str
    one: float
    other: float

    @property
    def size(self) -> float:
        """In 0..1, parts of the range of the score. Nothing to score is no more than itself: 1
        where one value alone is NaN."""
        if math.isnan(self.one) or math.isnan(self.other):
            return float(math.isnan(self.one) != math.isnan(self.other))
        return abs(self.one - self.other) / scale_of(self.score)


class DifferingScoresError(RuntimeError):
    """Two ways to the same scores lead to others."""


def require_alike(
    data_set: str, found: Sequence[StepScores], repeated: Sequence[Mapping[str, float]]
) -> Difference:
    """One pass gives the scores of an evaluation for every step.

    Args:
        data_set: its name, for the message.
        found: of `evaluate_steps`.
        repeated: of `evaluate_at_each`, for the same steps.

    Returns:
        The largest difference.

    Raises:
        DifferingScoresError: by more than `ROUNDING`.
    """
    worst = max(
        (
            Difference(one.step, score, value, again[score])
            for one, again in zip(found, repeated, strict=True)
            for score, value in one.scores.items()
        ),
        key=lambda difference: difference.size,
    )
    if worst.size > ROUNDING:
        raise DifferingScoresError(
            f"{data_set}: scores of one pass differ from those of an evaluation for every step by "
            f"more than rounding, most at step {worst.step}: {worst.score} {worst.one:.6g} against "
            f"{worst.other:.6g}; one of them is wrong, and nothing was written"
        )
    return worst


def asked_steps(trained: int) -> list[int]:
    """T/2, T, 2T and 4T of a circuit that was trained for T steps; the first two are the same step
    where T is 1."""
    return [max(trained // 2, 1), trained, 2 * trained, 4 * trained]


def fresh_copy(evaluator: DatasetEvaluator) -> DatasetEvaluator:
    """A copy without predictions that shares the rest, such as annotations of a gigabyte."""
    fresh = copy.copy(evaluator)
    fresh.reset()
    return fresh


def parse_steps(text: str, trained: int) -> list[int]:
    """Steps from a list such as `1-30`, `N,2N,4N` or `6,12,N/2`, with `N` the trained number.

    Raises:
        ConfigurationError: another form, a step below 1, or above `MOST_STEPS`.
    """
    steps: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        match = re.fullmatch(r"(\d*)N(?:/([1-9]\d*))?", part)
        if match:
            steps.add(int(match[1] or 1) * trained // int(match[2] or 1))
        elif first.isdecimal() and (last.isdecimal() or part == first):
            if int(last or first) < int(first):
                raise ConfigurationError(f"--steps: {part!r} ends before it begins")
            require_few_steps("--steps", int(last or first))
            steps.update(range(int(first), int(last or first) + 1))
        else:
            raise ConfigurationError(
                f"--steps: {part!r} is no step; give numbers, ranges such as 1-30, and N, 2N or "
                "N/2 for the trained number of steps, separated by commas"
            )
    if not steps or min(steps) < 1:
        raise ConfigurationError(f"--steps {text}: steps must be at least 1")
    require_few_steps("--steps", max(steps))
    return sorted(steps)


def write_csv(path: Path, runs: Mapping[str, Evaluated]) -> None:
    """Write `run,data set,trained steps,step,change,<scores>`, whole or not at all.

    Args:
        path: of the file; its folder is made.
        runs: by label, with scores of the same kind.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    names = next(iter(runs.values())).names
    writer.writerow(["run", "data set", "trained steps", "step", "change", *names])
    for label, run in runs.items():
        for name, entries in run.scores.items():
            for one in entries:
                start = [label, name, run.trained_steps, one.step, one.change]
                writer.writerow([*start, *one.scores.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.getvalue().encode())


def read_csv(path: Path) -> dict[str, Evaluated]:
    """What `write_csv` wrote.

    Raises:
        ConfigurationError: there is no such file, or it is another one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text and not text.endswith("\n"):
            raise ValueError("the last line was cut")
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        found: dict[str, Evaluated] = {}
        for line in lines:
            label, name = line.pop("run"), line.pop("data set")
            trained, step = int(line.pop("trained steps")), int(line.pop("step"))
            change = float(line.pop("change"))
            scores = {key: float(value) for key, value in line.items()}
            if step < 1 or tuple(scores) not in (CONTOUR, PANOPTIC):
                raise ValueError(f"a step {step} with the scores {', '.join(scores)}")
            run = found.setdefault(label, Evaluated(trained, {}))
            run.scores.setdefault(name, []).append(StepScores(step, scores, change))
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ConfigurationError(
            f"{path}: not a whole steps.csv of `tools/analyze.py steps` ({error}); give "
            "the run itself"
        ) from error
    if not found:
        raise ConfigurationError(f"{path}: holds no scores; give the run itself")
    return found
