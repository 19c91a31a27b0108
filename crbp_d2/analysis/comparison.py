"""A comparison: arms trained over several seeds, for one table."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import nn

from crbp_d2.analysis.arms import (
    Arm,
    choose_arms,
    read_arms,
    read_outcome,
    read_yaml,
    require_keys,
    require_settings,
)
from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.forms import AtSteps, Spread
from crbp_d2.analysis.instances import INSTANCE_SCORES, instance_scores
from crbp_d2.analysis.outputs import Batch, has_recurrence
from crbp_d2.analysis.processes import Failed, in_processes
from crbp_d2.analysis.stability import radius_after
from crbp_d2.analysis.steps import (
    CONTOUR,
    PANOPTIC,
    Results,
    asked_steps,
    evaluate_steps,
    scores_of,
    step_evaluators,
)
from crbp_d2.analysis.true_boxes import TRUE_BOX_SCORES, scores_in_true_boxes
from crbp_d2.config import final_node
from crbp_d2.core import ConfigurationError
from crbp_d2.data import ensure_prepared
from crbp_d2.data.loaders import is_pathfinder, require_registered
from crbp_d2.data.storage import write_json

RADIUS_SAMPLES = 8
"""Images or RoIs whose spectral radius is taken, unless the file says otherwise."""
PANOPTIC_SCORES = (*PANOPTIC[:3], *INSTANCE_SCORES, *TRUE_BOX_SCORES)
"""Of panoptic models: PQ, boxes and masks, and masks in the boxes of the truth, in percent."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        data: the data set that all models are scored on.
        score: which of their scores the table shows by steps, of `CONTOUR` or `PANOPTIC_SCORES`.
        arms: by label.
        also: scores that it shows at T.
        radius_samples: images or RoIs whose spectral radius is taken, at most.
    """

    data: str
    score: str
    arms: Mapping[str, Arm]
    also: Sequence[str] = ()
    radius_samples: int = RADIUS_SAMPLES

    def chosen(self, labels: Sequence[str] | None) -> list[Arm]:
        """Some of the arms, or all, in the order of the file.

        Raises:
            ConfigurationError: there is none of such a label.
        """
        return choose_arms(self.arms, labels)


def read_comparison(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """The comparison that a YAML file describes: see `benchmarks/nuclei.yaml`.

    Its keys are `data`, `score` and `arms`; an arm has a `config`, whose path begins at the folder
    of the file, and may `set` keys of it. `set` beside `arms` is for all of them; `also` and
    `radius_samples` are as in `Comparison`.

    Args:
        path: of the file.
        overrides: `KEY VALUE ...`, on top of all arms.

    Raises:
        ConfigurationError: there is no such file, it has another form, or a config or a key of one
            is unknown.
    """
    content = read_yaml(path)
    needed = {"data": str, "score": str, "arms": dict}
    optional = {"set": dict, "also": list, "radius_samples": int}
    require_keys(content, needed, str(path), optional=optional)
    known = CONTOUR + PANOPTIC_SCORES
    for score in (content["score"], *content.get("also", ())):
        if score not in known:
            raise ConfigurationError(f"{path}: score {score!r} is none of {', '.join(known)}")
    samples = content.get("radius_samples", RADIUS_SAMPLES)
    if samples < 1:
        raise ConfigurationError(f"{path}: radius_samples is {samples}, must be at least 1")
    return Comparison(
        data=content["data"],
        score=content["score"],
        arms=read_arms(content["arms"], path, content.get("set"), overrides),
        also=tuple(content.get("also", ())),
        radius_samples=samples,
    )


@dataclass(frozen=True)
class Outcome:
    """One trained model.

    Attributes:
        label: of its arm.
        seed: of weights and data order.
        settings: config and overrides of its arm.
        minutes: of one core that training took; other work on the machine doesn't count.
        parameters: of the model, those that are trained.
        scores: name -> score at T/2, T, 2T and 4T steps; of a model without recurrence four times
            the same.
        change: relative change of the state in the last step of T and of 4T.
        radius: median, 99th percentile and largest spectral radius at T.
    """

    label: str
    seed: int
    settings: dict[str, Any]
    minutes: float
    parameters: int
    scores: dict[str, AtSteps]
    change: Annotated[list[float], 2] | None
    radius: Spread | None


def train_one(comparison: Comparison, arm: Arm, seed: int, folder: Path) -> Outcome:
    """Train and measure one model on one core; read from `folder` if that was done before. A
    training that was interrupted goes on.

    Args:
        comparison: whose data, scores and number of radii are taken.
        arm: what to train.
        seed: of weights and data order.
        folder: `OUTPUT_DIR`.

    Raises:
        ConfigurationError: what the folder holds was trained otherwise, or the data have no such
            score.
    """
    # Detectron2's engine is imported in the process that trains.
    from crbp_d2.engine import argument_parser, begin_training, setup
    from crbp_d2.engine.checkpoint import is_of_earlier

    data = comparison.data
    result, begun = folder / "outcome.json", folder / "arm.json"
    settings = {**arm.settings(), "data": data, "radius_samples": comparison.radius_samples}
    resume = begun.is_file() and not is_of_earlier(folder)
    if begun.is_file():
        require_settings(begun, arm.settings())
    if result.is_file():
        names = {"scores": (comparison.score, *comparison.also)}
        return read_outcome(result, Outcome, settings, label=arm.label, seed=seed, names=names)
    torch.set_num_threads(1)
    common = ("OUTPUT_DIR", folder, "SEED", seed, "DATASETS.TEST", "()")
    cfg = setup(
        argument_parser().parse_args(
            ["--config-file", str(arm.config), *map(str, (*arm.opts, *common))]
        )
    )
    require_scorable(comparison)
    spent = _Spent()
    trainer = begin_training(cfg, resume=resume, hooks=[spent])
    write_json(begun, {"settings": arm.settings()})
    trainer.train()
    model = trainer.model.eval()
    steps = final_node(cfg.CRBP).SOLVER.STEPS
    scores, change, radius = measure(model, cfg, comparison, steps)
    outcome = Outcome(
        label=arm.label,
        seed=seed,
        settings=settings,
        minutes=spent.seconds / 60,
        parameters=sum(one.numel() for one in model.parameters() if one.requires_grad),
        scores=scores,
        change=change,
        radius=radius,
    )
    write_json(result, asdict(outcome))
    return outcome


class _Spent(HookBase):
    """Seconds of a core that training took, those before an interruption included."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def before_step(self) -> None:
        self._begin = time.process_time()

    def after_step(self) -> None:
        self.seconds += time.process_time() - self._begin

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = state["seconds"]


def require_scorable(comparison: Comparison) -> None:
    """The data set can be scored, and by those scores: known before anything is trained.

    Raises:
        ConfigurationError, DatasetError: naming data set or score.
    """
    data = comparison.data
    require_registered(data, "data")
    ensure_prepared(data)
    step_evaluators(data)
    known = CONTOUR if is_pathfinder(data) else PANOPTIC_SCORES
    for score in (comparison.score, *comparison.also):
        if score not in known:
            raise ConfigurationError(f"score {score}: {data} is scored by {', '.join(known)}")


def measure(
    model: nn.Module, cfg: CfgNode, comparison: Comparison, steps: int
) -> tuple[dict[str, list[float]], list[float] | None, list[float] | None]:
    """Scores, change and radius as `Outcome` has them.

    Args:
        model: in evaluation mode.
        cfg: of the model.
        comparison: whose data and number of radii are taken.
        steps: that it was trained for.
    """
    data = comparison.data
    loader = scoring_batches(cfg, data)
    evaluators = step_evaluators(data, tasks=("bbox", "segm"))
    wanted = asked_steps(steps)
    change: list[float] | None = None
    radius: list[float] | None = None
    if has_recurrence(model):
        found = {
            one.step: one
            for one in evaluate_steps(model, loader, wanted, evaluators, scores=_all_scores)
        }
        change = [found[steps].change, found[4 * steps].change]
        radii = _radii(model, loader, steps, comparison.radius_samples)
        radius = [float(value) for value in _spread(radii)]
        of_steps = [found[step].scores for step in wanted]
    else:
        of_steps = [_scores(model, loader, evaluators)] * len(wanted)
    if _has_things(data):
        in_true_boxes = scores_in_true_boxes(model, cfg, data, sorted(set(wanted)))
        by_step = dict(zip(sorted(set(wanted)), in_true_boxes, strict=True))
        of_steps = [{**one, **by_step[step]} for one, step in zip(of_steps, wanted, strict=True)]
    scores = {name: [one[name] for one in of_steps] for name in of_steps[0]}
    return scores, change, radius


def _has_things(data: str) -> bool:
    if is_pathfinder(data):
        return False
    return bool(MetadataCatalog.get(data).thing_dataset_id_to_contiguous_id)


def _all_scores(results: Results) -> dict[str, float]:
    own = scores_of(results)
    return own if "pathfinder" in results else {**own, **instance_scores(results)}


def _scores(
    model: nn.Module, loader: Iterable[Batch], evaluators: Sequence[DatasetEvaluator]
) -> dict[str, float]:
    evaluator = DatasetEvaluators(evaluators)
    evaluator.reset()
    for batch in loader:
        with torch.no_grad():
            evaluator.process(batch, model(batch))
    return _all_scores(evaluator.evaluate())


def _radii(model: nn.Module, loader: Iterable[Batch], steps: int, samples: int) -> torch.Tensor:
    """Of the first samples, `(samples,)` or fewer."""
    found = torch.empty(0)
    for batch in loader:
        if len(found) >= samples:
            break
        some = batch[: samples - len(found)]
        found = torch.cat([found, radius_after(model, some, steps=steps).cpu()])
    return found[:samples]


def _spread(radii: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Median, 99th percentile and largest; NaN of none."""
    some = radii if len(radii) else torch.tensor([math.nan])
    return some.median(), some.quantile(0.99), some.max()


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
    repeated. One that fails is told, with its log, and the others go on.
    """
    # Only what is not of other arms has to be sent to the processes.
    alone = replace(comparison, arms={})
    trainings = {
        f"{arm.label}, seed {seed}": (arm, seed, arm.folder(output, seed))
        for seed in seeds
        for arm in arms
    }
    tasks = {label: partial(_train_quietly, alone, *one) for label, one in trainings.items()}
    for found in in_processes(tasks, jobs):
        yield _with_log(found, trainings[found.label][-1]) if isinstance(found, Failed) else found


def _with_log(failed: Failed, folder: Path) -> Failed:
    log = folder / "log.txt"
    # There is none of what failed before its training.
    return replace(failed, reason=f"{failed.reason}; see {log}") if log.is_file() else failed


def _train_quietly(*arguments: Any) -> Outcome:
    # What several say at a time nobody can read: each has it in its log.txt.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return train_one(*arguments)
