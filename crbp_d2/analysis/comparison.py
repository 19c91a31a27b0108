"""A comparison: arms trained over several seeds, for one table."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import nn

from crbp_d2.analysis.arms import Arm, choose_arms, read_arms, read_outcome, read_yaml, require_keys
from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.outputs import Batch, find_recurrence
from crbp_d2.analysis.processes import Failed, in_processes
from crbp_d2.analysis.stability import radius_after
from crbp_d2.analysis.steps import (
    CONTOUR,
    PANOPTIC,
    evaluate_steps,
    scale_of,
    scores_of,
    step_evaluators,
)
from crbp_d2.config import final_node
from crbp_d2.core import ConfigurationError, Recurrence
from crbp_d2.data import ensure_prepared
from crbp_d2.data.loaders import is_pathfinder, require_registered
from crbp_d2.data.storage import write_json

RADIUS_SAMPLES = 8
"""Images or RoIs whose spectral radius is taken."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        data: the data set that all models are scored on.
        score: which of their scores the table shows, of `CONTOUR` or `PANOPTIC`.
        arms: by label.
    """

    data: str
    score: str
    arms: Mapping[str, Arm]

    def chosen(self, labels: Sequence[str] | None) -> list[Arm]:
        """Some of the arms, or all, in the order of the file.

        Raises:
            ConfigurationError: there is none of such a label.
        """
        return choose_arms(self.arms, labels)


def read_comparison(path: Path) -> Comparison:
    """The comparison that a YAML file describes: see `benchmarks/pathfinder_tiny.yaml`.

    Its keys are `data`, `score` and `arms`; an arm has a `config`, whose path begins at the folder
    of the file, and may `set` keys of it.

    Raises:
        ConfigurationError: there is no such file, it has another form, or a config or a key of one
            is unknown.
    """
    content = read_yaml(path)
    require_keys(content, {"data": str, "score": str, "arms": dict}, str(path))
    if content["score"] not in CONTOUR + PANOPTIC:
        raise ConfigurationError(
            f"{path}: score {content['score']!r} is none of {', '.join(CONTOUR + PANOPTIC)}"
        )
    return Comparison(content["data"], content["score"], read_arms(content["arms"], path))


@dataclass(frozen=True)
class Outcome:
    """One trained model.

    Attributes:
        label: of its arm.
        seed: of weights and data order.
        settings: config and overrides of its arm.
        minutes: of one core that training took; other work on the machine doesn't count.
        scores: name -> score at T/2, T, 2T and 4T steps; of a model without recurrence four times
            the same.
        change: relative change of the state in the last step of T and of 4T.
        radius: median and largest spectral radius at T, over `RADIUS_SAMPLES`.
    """

    label: str
    seed: int
    settings: dict[str, Any]
    minutes: float
    scores: dict[str, list[float]]
    change: list[float] | None
    radius: list[float] | None


def train_one(data: str, score: str, arm: Arm, seed: int, folder: Path) -> Outcome:
    """Train and measure one model on one core; read from `folder` if that was done before.

    Args:
        data: the data set to score on.
        score: that the table is to show.
        arm: what to train.
        seed: of weights and data order.
        folder: `OUTPUT_DIR`.

    Raises:
        ConfigurationError: what the folder holds was trained otherwise, or the data have no such
            score.
    """
    # Detectron2's engine is imported in the process that trains.
    from crbp_d2.engine import Trainer, argument_parser, save_config, setup

    result = folder / "outcome.json"
    settings = {**arm.settings(), "data": data}
    if result.is_file():
        return read_outcome(result, Outcome, settings, arm.label)
    torch.set_num_threads(1)
    common = ("OUTPUT_DIR", folder, "SEED", seed, "DATASETS.TEST", "()")
    cfg = setup(
        argument_parser().parse_args(
            ["--config-file", str(arm.config), *map(str, (*arm.opts, *common))]
        )
    )
    require_scorable(data, score)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    save_config(cfg)
    begin = time.process_time()
    trainer.train()
    minutes = (time.process_time() - begin) / 60
    model = trainer.model.eval()
    measured = measure(model, scoring_batches(cfg, data), data, final_node(cfg.CRBP).SOLVER.STEPS)
    outcome = Outcome(arm.label, seed, settings, minutes, *measured)
    write_json(result, asdict(outcome))
    return outcome


def require_scorable(data: str, score: str) -> None:
    """The data set can be scored, and by that score: known before anything is trained.

    Raises:
        ConfigurationError, DatasetError: naming data set or score.
    """
    require_registered(data, "data")
    ensure_prepared(data)
    step_evaluators(data)
    known = CONTOUR if is_pathfinder(data) else PANOPTIC
    if score not in known:
        raise ConfigurationError(f"score {score}: {data} is scored by {', '.join(known)}")


def measure(
    model: nn.Module, loader: Iterable[Batch], data: str, steps: int
) -> tuple[dict[str, list[float]], list[float] | None, list[float] | None]:
    """Scores, change and radius as `Outcome` has them, of a model trained for `steps` steps."""
    evaluators = step_evaluators(data)
    if not any(isinstance(module, Recurrence) for module in model.modules()):
        scores = _scores(model, loader, evaluators)
        return {name: [value] * 4 for name, value in scores.items()}, None, None
    # By their position, as T/2 and T are the same step where T is 1.
    wanted = [max(steps // 2, 1), steps, 2 * steps, 4 * steps]
    found = {one.step: one for one in evaluate_steps(model, loader, wanted, evaluators)}
    radius = _radius(model, loader, steps)
    return (
        {name: [found[step].scores[name] for step in wanted] for name in found[steps].scores},
        [found[steps].change, found[4 * steps].change],
        [float(radius.median()), float(radius.max())] if len(radius) else [math.nan, math.nan],
    )


def _scores(
    model: nn.Module, loader: Iterable[Batch], evaluators: Sequence[DatasetEvaluator]
) -> dict[str, float]:
    evaluator = DatasetEvaluators(evaluators)
    evaluator.reset()
    for batch in loader:
        with torch.no_grad():
            evaluator.process(batch, model(batch))
    return scores_of(evaluator.evaluate())


def _radius(model: nn.Module, loader: Iterable[Batch], steps: int) -> torch.Tensor:
    """Of the first samples, `(RADIUS_SAMPLES,)` or fewer."""
    find_recurrence(model)
    found = torch.empty(0)
    for batch in loader:
        if len(found) >= RADIUS_SAMPLES:
            break
        found = torch.cat([found, radius_after(model, batch[:RADIUS_SAMPLES], steps=steps).cpu()])
    return found[:RADIUS_SAMPLES]


def train_all(
    comparison: Comparison,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    output: Path,
    *,
    jobs: int,
) -> Iterator[Outcome | Failed]:
    """Outcomes as they come, of all arms with all seeds, `jobs` models at a time.

    Those that the folder `output` has are not trained again, so an interrupted call can be
    repeated. One that fails is told, and the others go on.
    """
    tasks = {
        f"{arm.label}, seed {seed}": partial(
            _train_quietly,
            comparison.data,
            comparison.score,
            arm,
            seed,
            arm.folder(output, seed),
        )
        for seed in seeds
        for arm in arms
    }
    yield from in_processes(tasks, jobs)


def _train_quietly(*arguments: Any) -> Outcome:
    # What several say at a time nobody can read: each has it in its log.txt.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return train_one(*arguments)


def markdown(comparison: Comparison, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line an arm: medians over the seeds, with the range of the score at T."""
    score = comparison.score
    yield (
        f"| arm | {score} at T/2 | {score} at T (min-max) | 2T | 4T | change at T | at 4T "
        "| radius at T, median / max | minutes | seeds |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    form = ".3f" if scale_of(score) == 1 else ".1f"
    for label in comparison.arms:
        runs = [outcome for outcome in outcomes if outcome.label == label]
        if not runs:
            continue
        of_seeds = [run.scores[score] for run in runs]
        cells = [_median_of(values, form) for values in zip(*of_seeds, strict=True)]
        at_t = [values[1] for values in of_seeds if not math.isnan(values[1])]
        cells[1] += f" ({min(at_t):{form}}-{max(at_t):{form}})" if at_t else ""
        cells += [_median(runs, "change", 0, ".4f"), _median(runs, "change", 1, ".5f")]
        cells.append(f"{_median(runs, 'radius', 0, '.2f')} / {_median(runs, 'radius', 1, '.2f')}")
        cells.append(f"{statistics.median(run.minutes for run in runs):.1f}")
        cells.append(", ".join(str(run.seed) for run in sorted(runs, key=lambda run: run.seed)))
        yield f"| {label} | " + " | ".join(cells) + " |"


def _median(runs: Sequence[Outcome], name: str, position: int, form: str) -> str:
    values = [getattr(run, name) for run in runs]
    if any(value is None for value in values):
        return "-"
    return _median_of([value[position] for value in values], form)


def _median_of(values: Sequence[float], form: str) -> str:
    """Of those that are numbers: some have nothing to score, or no RoI."""
    known = [value for value in values if not math.isnan(value)]
    return format(statistics.median(known), form) if known else "-"
