"""Learning algorithms on the quick Pathfinder task, over several seeds, in one table."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.stability import radius_after
from crbp_d2.analysis.steps import evaluate_steps, step_evaluators
from crbp_d2.data.storage import write_json
from crbp_d2.evaluation.pathfinder import PathfinderEvaluator

BPTT = "quick/pathfinder_bptt.yaml"
CRBP = "quick/pathfinder_crbp.yaml"
CONTRACTING = "quick/pathfinder_contracting.yaml"
CONTENDERS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "bptt": (BPTT, ()),
    "bptt+lcp": (BPTT, ("CRBP.ALGORITHM", "bptt+lcp")),
    "tbptt": (BPTT, ("CRBP.ALGORITHM", "tbptt")),
    "bptt, loss on every step": (BPTT, ("CRBP.LOSS.EVERY_STEP", True)),
    "crbp": (CRBP, ()),
    "rbp": (CRBP, ("CRBP.ALGORITHM", "rbp")),
    "jfb": (CRBP, ("CRBP.ALGORITHM", "jfb")),
    "phantom": (CRBP, ("CRBP.ALGORITHM", "phantom", "CRBP.ADJOINT.LENGTH", 5)),
    "implicit": (
        CRBP,
        (
            *("CRBP.ALGORITHM", "implicit", "CRBP.ADJOINT.TOLERANCE", 0.01),
            *("CRBP.ADJOINT.KRYLOV_SIZE", 20, "CRBP.ADJOINT.RESTARTS", 1),
        ),
    ),
    "crbp, fixed steps": (CRBP, ("CRBP.SOLVER.SPREAD", 0)),
    "contracting": (CONTRACTING, ()),
    "contracting, fixed steps": (CONTRACTING, ("CRBP.SOLVER.SPREAD", 0)),
    "contracting, no early loss": (CONTRACTING, ("CRBP.LOSS.EARLY_WEIGHT", 0.0)),
    "contracting, slower gates": (CONTRACTING, ("CRBP.CELL.CHRONO_STEPS", None)),
    "contracting, LCP for spectral": (
        CONTRACTING,
        (
            *("CRBP.PENALTY.SPECTRAL.WEIGHT", 0.0, "CRBP.PENALTY.LCP.WEIGHT", 50.0),
            *("CRBP.PENALTY.LCP.TWO_SIDED", True),
        ),
    ),
    "feed-forward": ("quick/pathfinder_feedforward.yaml", ()),
}
"""Label -> config and overrides. To add one, enter it here."""


@dataclass(frozen=True)
class Outcome:
    """One trained model.

    Attributes:
        label: key of `CONTENDERS`.
        seed: of weights and data order.
        minutes: of one core that training took; other work on the machine doesn't count.
        f1: at T/2, T, 2T and 4T steps; of a model without recurrence four times the same.
        change: relative change of the state in the last step of T and of 4T.
        radius: median and largest spectral radius at T, over eight images.
    """

    label: str
    seed: int
    minutes: float
    f1: list[float]
    change: list[float] | None
    radius: list[float] | None


def train_one(configs: Path, label: str, seed: int, folder: Path) -> Outcome:
    """Train and measure one model on one core; read from `folder` if that was done before."""
    # Detectron2's engine is imported in the process that trains.
    from crbp_d2.engine import Trainer, argument_parser, save_config, setup

    result = folder / "outcome.json"
    if result.is_file():
        return Outcome(**json.loads(result.read_text()))
    torch.set_num_threads(1)
    config, overrides = CONTENDERS[label]
    common = ("OUTPUT_DIR", folder, "SEED", seed, "DATASETS.TEST", "()")
    cfg = setup(
        argument_parser().parse_args(
            ["--config-file", str(configs / config), *map(str, (*overrides, *common))]
        )
    )
    trainer = Trainer(cfg)
    save_config(cfg)
    begin = time.process_time()
    trainer.train()
    minutes = (time.process_time() - begin) / 60
    model = trainer.model.eval()
    loader = scoring_batches(cfg, "pathfinder_tiny_val")
    outcome = Outcome(label, seed, minutes, *measure(model, loader, cfg.CRBP.SOLVER.STEPS))
    write_json(result, asdict(outcome))
    return outcome


def measure(
    model: Any, loader: Iterable[Any], steps: int
) -> tuple[list[float], list[float] | None, list[float] | None]:
    """F1, change and radius as `Outcome` has them, of a model trained for `steps` steps."""
    if not hasattr(model.sem_seg_head, "recurrence"):
        evaluator = PathfinderEvaluator(distributed=False)
        for batch in loader:
            with torch.no_grad():
                evaluator.process(batch, model(batch))
        scores = evaluator.evaluate()
        assert scores is not None
        return [scores["pathfinder"]["F1"]] * 4, None, None
    # By their position, as T/2 and T are the same step where T is 1.
    wanted = [max(steps // 2, 1), steps, 2 * steps, 4 * steps]
    evaluators = step_evaluators("pathfinder_tiny_val")
    found = {one.step: one for one in evaluate_steps(model, loader, wanted, evaluators)}
    radius = radius_after(model, next(iter(loader))[:8], steps=steps)
    return (
        [found[step].scores["F1"] for step in wanted],
        [found[steps].change, found[4 * steps].change],
        [float(radius.median()), float(radius.max())],
    )


def train_all(
    configs: Path, labels: Sequence[str], seeds: Sequence[int], folder: Path, *, jobs: int
) -> Iterator[Outcome]:
    """Outcomes as they come, of all labels with all seeds, `jobs` models at a time.

    Those that `folder` has are not trained again, so an interrupted call can be repeated.
    """
    runs = [
        (configs, label, seed, folder / f"{_file_name(label)}_{seed}")
        for seed in seeds
        for label in labels
    ]
    # A process of its own for each model, as its log belongs to the process.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_train_one, runs, chunksize=1)


def _train_one(run: tuple[Path, str, int, Path]) -> Outcome:
    return train_one(*run)


def _file_name(label: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def markdown(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line a contender: medians over the seeds, with the range of F1 at T."""
    yield (
        "| algorithm | F1 at T/2 | F1 at T (min-max) | 2T | 4T | change at T | at 4T "
        "| radius at T, median / max | minutes | seeds |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for label in CONTENDERS:
        runs = [outcome for outcome in outcomes if outcome.label == label]
        if not runs:
            continue
        f1 = [statistics.median(values) for values in zip(*(run.f1 for run in runs), strict=True)]
        at_t = [run.f1[1] for run in runs]
        cells = [f"{f1[0]:.3f}", f"{f1[1]:.3f} ({min(at_t):.3f}-{max(at_t):.3f})"]
        cells += [f"{value:.3f}" for value in f1[2:]]
        cells += [_median(runs, "change", 0, ".4f"), _median(runs, "change", 1, ".5f")]
        cells.append(f"{_median(runs, 'radius', 0, '.2f')} / {_median(runs, 'radius', 1, '.2f')}")
        cells.append(f"{statistics.median(run.minutes for run in runs):.1f}")
        cells.append(", ".join(str(run.seed) for run in sorted(runs, key=lambda run: run.seed)))
        yield f"| {label} | " + " | ".join(cells) + " |"


def _median(runs: Sequence[Outcome], name: str, position: int, form: str) -> str:
    values = [getattr(run, name) for run in runs]
    if any(value is None for value in values):
        return "-"
    return format(statistics.median(value[position] for value in values), form)
