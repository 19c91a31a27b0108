"""Trainings of a contour model that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from crbp_d2.engine import Trainer, argument_parser, main, setup
from tests.modeling.conftest import CONFIGS

QUICK = CONFIGS / "quick" / "pathfinder_crbp.yaml"
TINY = (
    *(
        "CRBP.CELL.CHANNELS",
        4,
        "CRBP.CELL.KERNEL_SIZE",
        3,
        "CRBP.SOLVER.STEPS",
        2,
        "CRBP.SOLVER.SPREAD",
        0,
    ),
    *("CRBP.ADJOINT.TERMS", 2, "CRBP.LOSS.EARLY_WEIGHT", 0.0, "TEST.PICTURES", 0),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1),
    *("MODEL.DEVICE", "cpu"),
)


def arguments(output: Path, *overrides: object, flags: tuple[str, ...] = ()) -> Any:
    """The command line of a run, on no test data."""
    words = [
        *("--config-file", QUICK, *flags),
        *("OUTPUT_DIR", output, *TINY, "DATASETS.TEST", "()", *overrides),
    ]
    return argument_parser().parse_args(list(map(str, words)))


def train(output: Path, *overrides: object, flags: tuple[str, ...] = ()) -> Any:
    """Train, or with `--eval-only` evaluate."""
    return main(arguments(output, *overrides, flags=flags))


def trainer_of(output: Path, *overrides: object) -> Trainer:
    """A trainer that has not begun."""
    return Trainer(setup(arguments(output, *overrides)))


def change_weights(path: Path, change: Any, target: Path | None = None) -> Path:
    """Let a checkpoint have other weights: `change(weights)` edits them in place."""
    stored = torch.load(path, weights_only=True)
    change(stored["model"])
    torch.save(stored, target or path)
    return target or path
