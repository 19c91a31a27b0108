"""The paper's published scores, to lay over one's own: README.md names the sources."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from crbp_d2.core import ConfigurationError

SOURCE = "Linsley et al. 2020"
"""Of all scores here."""
FINAL = (
    *("panoptic_R50", "panoptic_R101", "pathfinder_14", "pathfinder_20", "pathfinder_25"),
    *("pathfinder_14_kernel_3", "pathfinder_14_kernel_5", "pathfinder_14_kernel_9"),
)
"""Names of `final_scores`."""
PER_STEP = ("panoptic_R50", "pathfinder_14")
"""Names of `per_step`."""

PAPER_KERNEL_SIZE = 15


@dataclass(frozen=True)
class PathfinderScore:
    """One training on Pathfinder; F1 in 0..1 on the validation images.

    Attributes:
        algorithm: as the file names it.
        dataset: `pathfinder_14`, `pathfinder_20` or `pathfinder_25`.
        kernel_size: of the long-range kernels.
        steps: in training; `None` where it is not stated, or there are none.
        neumann_terms: of RBP and C-RBP.
        best: over the course of training.
        final: at its end, where it was published.
    """

    algorithm: str
    dataset: str
    kernel_size: int
    steps: int | None
    neumann_terms: int | None
    best: float
    final: float | None


def per_step(name: str) -> dict[str, dict[int, float]]:
    """Scores at several steps.

    Args:
        name: `panoptic_R50`, PQ in percent on COCO val2017, or `pathfinder_14`, F1 in 0..1.

    Returns:
        Model -> step -> score.

    Raises:
        ConfigurationError: another name.
    """
    _require(name, PER_STEP)
    found: dict[str, dict[int, float]] = {}
    if name == "panoptic_R50":
        for row in _rows("panoptic_pq_per_step_R50.csv"):
            found.setdefault(row["model"], {})[int(row["step"])] = float(row["PQ"])
        return found
    for row in _rows("pathfinder14_f1_per_step.csv"):
        model = row.pop("algorithm")
        found[model] = {
            int(column.removeprefix("step_")): float(score) for column, score in row.items()
        }
    return found


def pathfinder_f1() -> list[PathfinderScore]:
    """Validation scores of all published trainings on Pathfinder."""
    return [
        PathfinderScore(
            algorithm=row["algorithm"],
            dataset=row["dataset"],
            kernel_size=int(row["kernel_size"]),
            steps=int(row["steps"]) if row["steps"] else None,
            neumann_terms=int(row["neumann_terms"]) if row["neumann_terms"] else None,
            best=float(row["best_val_f1"]),
            final=float(row["final_val_f1"]) if row["final_val_f1"] else None,
        )
        for row in _rows("pathfinder_f1.csv")
    ]


def final_scores(name: str) -> dict[str, float]:
    """The best published score of each algorithm, over numbers of steps and the course of training.

    Args:
        name: of `FINAL`. `panoptic_*`: PQ in percent on COCO val2017; `pathfinder_*`: validation
            F1 in 0..1, with kernels of 15 pixels if it says no others.

    Returns:
        Algorithm, as the files name it -> score.

    Raises:
        ConfigurationError: another name.
    """
    _require(name, FINAL)
    kind, _, variant = name.partition("_")
    if kind == "panoptic":
        pairs = [
            (row["model"], float(row["PQ"]))
            for row in _rows("panoptic_coco_val2017.csv")
            if row["backbone"] == variant
        ]
    else:
        dataset, _, size = name.partition("_kernel_")
        pairs = [
            (one.algorithm, one.best)
            for one in pathfinder_f1()
            if one.dataset == dataset and one.kernel_size == int(size or PAPER_KERNEL_SIZE)
        ]
    best: dict[str, float] = {}
    for algorithm, score in pairs:
        best[algorithm] = max(score, best.get(algorithm, score))
    return best


def _rows(file_name: str) -> list[dict[str, str]]:
    text = files(__name__).joinpath(file_name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _require(name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise ConfigurationError(f"no published scores {name!r}; choose from {', '.join(allowed)}")
