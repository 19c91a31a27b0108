#!/usr/bin/env python3
"""Compare the learning algorithms on the mask head's and the Pathfinder model's cell.

Prints one Markdown table for each cell: cosine and norm ratio to the exact gradient, memory that
autograd saves, and time relative to one-step BPTT. The cells are untrained and driven by noise;
with --run it is the circuit of a trained model, driven by its test images.

examples:
  tools/compare_estimators.py --rounds 3 > estimators.md
  tools/compare_estimators.py --run outputs/shapes_crbp --samples 16
"""

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crbp_d2.analysis.benchmark.measure import machine
from crbp_d2.analysis.estimators import compare, markdown, trained_setting
from crbp_d2.analysis.runs import load_run
from crbp_d2.core import HGRUCell, MaskHGRUCell
from crbp_d2.launch import run_alone

CELLS = {
    "mask head: 256 channels, 14x14, 16 RoIs": (
        lambda: MaskHGRUCell(channels=256),
        (16, 256, 14, 14),
    ),
    "Pathfinder: 25 channels, kernel 15, instance norm, 64x64, 2 images": (
        lambda: HGRUCell(channels=25, norm="IN", norm_scale=0.1),
        (2, 25, 64, 64),
    ),
}


def settings(
    run: str | None, data_set: str | None, samples: int
) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Title, cell and drive of each table."""
    if run is None:
        for title, (build, shape) in CELLS.items():
            yield title, build(), torch.rand(shape)
        return
    loaded = load_run(run, data_set=data_set)
    cell, drive = trained_setting(loaded, samples)
    size = "x".join(map(str, drive.shape[1:]))
    yield f"{loaded.label}: {len(drive)} samples of {size}", cell.train(), drive


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", metavar="RUN", help="OUTPUT_DIR of a training, or LABEL=FOLDER")
    parser.add_argument(
        "--dataset", metavar="NAME", help="with --run: in place of its DATASETS.TEST"
    )
    parser.add_argument(
        "--samples", type=int, default=8, help="with --run: RoIs or images (default: 8)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved timings of each")
    parser.add_argument("--steps", type=int, default=20, help="T of gradients and times")
    parser.add_argument("--exact-steps", type=int, default=400, help="T taken for the equilibrium")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.samples < 1:
        parser.error(f"--samples must be at least 1, got {arguments.samples}")
    torch.manual_seed(arguments.seed)
    chosen = arguments.run, arguments.dataset, arguments.samples
    try:
        for title, cell, drive in settings(*chosen):
            print_table(title, cell, drive, arguments)
    except (ValueError, KeyError) as error:
        parser.error(str(error))


def print_table(title: str, cell: nn.Module, drive: Tensor, arguments: argparse.Namespace) -> None:
    """Measure one cell and print its table."""
    with tqdm(desc=title, unit="measurement") as bar:

        def report(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        rows, residual = compare(
            cell,
            drive,
            steps=arguments.steps,
            rounds=arguments.rounds,
            exact_steps=arguments.exact_steps,
            progress=report,
        )
    sys.stdout.write(f"\n**{title}**\n\n" + "\n".join(markdown(rows)) + "\n\n")
    made_on = ", ".join(f"{key} {value}" for key, value in machine().items())
    weights = "Trained weights, test images" if arguments.run else "Random weights and drive"
    sys.stdout.write(
        f"{weights}, seed {arguments.seed}; T = {arguments.steps}; residual of the state taken as "
        f"the equilibrium {residual:.1e}; {made_on}.\n\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    run_alone(main)
