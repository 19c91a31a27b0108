"""Time and memory of the trained arms of a comparison on its data, in turns.

ARMS is the file of a comparison that tools/compare.py has trained, of which the models of one seed
are taken. Prints a Markdown table and writes it with all timings to OUTPUT.md and OUTPUT.json. The
first arm is what the others are compared with. On a CPU memory is what autograd saves for the
backward pass; on a GPU it is the peak of its allocator.

examples:
  tools/benchmark.py arms benchmarks/nuclei.yaml --rounds 10 --opts DATASETS.FILE data.yaml
  tools/benchmark.py arms benchmarks/nuclei.yaml --inference --opts DATASETS.FILE data.yaml
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage

from benchmarks.measure import interleave, machine, save
from crbp_d2.analysis.arms import Arm
from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands.arguments import at_least_one
from crbp_d2.analysis.comparison import read_comparison
from crbp_d2.analysis.runs import Run, load_run
from crbp_d2.data import build_train_loader
from crbp_d2.engine.optimizers import build_optimizer
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    parser.add_argument("file", metavar="ARMS", type=Path)
    parser.add_argument("--arms", nargs="+", metavar="LABEL", help="some of them (default: all)")
    parser.add_argument("--inference", action="store_true", help="predictions, not training steps")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of a recurrence in predictions (default: T)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the models (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="a batch each (default: 5)")
    parser.add_argument(
        "--trained", type=Path, metavar="FOLDER", help="of compare.py (default: outputs/NAME)"
    )
    parser.add_argument(
        "--output", type=Path, help="default: outputs/benchmark_arms_training or _inference"
    )
    parser.add_argument("--opts", metavar="KEY VALUE", nargs="+", default=[], help="for all arms")


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    for name in ("rounds", "steps"):
        at_least_one(f"--{name}", getattr(arguments, name))
    comparison = read_comparison(arguments.file, arguments.opts)
    folder = arguments.trained or Path("outputs") / arguments.file.stem
    kind = "inference" if arguments.inference else "training"
    steps: dict[str, Callable[[], None]] = {}
    for arm in tqdm(comparison.chosen(arguments.arms), "reading"):
        found = _load(arm, folder, arguments, comparison.data)
        steps[arm.label] = (
            _prediction(found, comparison.data, arguments.rounds)
            if arguments.inference
            else _training(found, arguments.rounds)
        )
    with tqdm(total=len(steps) * (arguments.rounds + 1), unit="step") as bar:

        def report(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        measurements = interleave(steps, arguments.rounds, progress=report)
    output = arguments.output or Path(f"outputs/benchmark_arms_{kind}")
    about = {"arms": str(arguments.file), "kind": kind, "seed": arguments.seed}
    table = save(output, measurements, about)
    made_on = ", ".join(f"{key} {value}" for key, value in machine().items())
    say(f"{table}\n{kind} on {comparison.data}; {made_on}\n")


def _load(arm: Arm, folder: Path, arguments: argparse.Namespace, data: str) -> Run:
    asked = arguments.steps if arguments.inference else None
    more = ["CRBP.SOLVER.TEST_STEPS", asked] if asked else []
    text = str(arm.folder(folder, arguments.seed))
    return load_run(text, [*arguments.opts, *more], data_sets=(data,))


def _training(found: Run, rounds: int) -> Callable[[], None]:
    """Steps on the first batches, the same for all arms, and at the same weights but for a hair."""
    cfg = found.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.BASE_LR, cfg.DATALOADER.NUM_WORKERS = 1e-9, 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    model: Any = found.model.train()
    batches = itertools.cycle(list(itertools.islice(build_train_loader(cfg), rounds + 1)))
    optimizer = build_optimizer(cfg, model)

    def learn() -> None:
        # Proposals are drawn.
        torch.manual_seed(0)
        with EventStorage(cfg.SOLVER.MAX_ITER - 1):
            losses = model(next(batches))
        optimizer.zero_grad()
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
        optimizer.step()

    return learn


def _prediction(found: Run, data: str, rounds: int) -> Callable[[], None]:
    model: Any = found.model.eval()
    batches = itertools.cycle(list(itertools.islice(scoring_batches(found.cfg, data), rounds + 1)))

    def predict() -> None:
        with torch.no_grad():
            model(next(batches))

    return predict
