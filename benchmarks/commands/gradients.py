"""The learning algorithms side by side: nearness to the exact gradient, memory, time.

Prints one Markdown table for each cell: cosine and norm ratio to the exact gradient, memory that
autograd saves, and time relative to one-step BPTT. The cells are those of the mask head and the
Pathfinder model, untrained and driven by noise; of a RUN it is the circuit of the trained model,
driven by its test images.

examples:
  tools/benchmark.py gradients --rounds 3 > gradients.md
  tools/benchmark.py gradients C-RBP=outputs/crbp BPTT=outputs/bptt --samples 16
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.gradients import compare, markdown, trained_setting
from benchmarks.measure import machine
from crbp_d2.analysis.commands.arguments import at_least_one, chosen
from crbp_d2.analysis.runs import load_runs
from crbp_d2.core import HGRUCell, MaskHGRUCell
from crbp_d2.output import say

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help="OUTPUT_DIR of a training, or LABEL=RUN; a table for each (default: untrained cells)",
    )
    parser.add_argument("--dataset", metavar="NAME", help="with RUN: in place of its DATASETS.TEST")
    parser.add_argument(
        "--samples", type=int, default=8, help="with RUN: RoIs or images (default: 8)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved timings (default: 3)")
    parser.add_argument(
        "--steps", type=int, default=20, help="T of gradients and times (default: 20)"
    )
    parser.add_argument(
        "--exact-steps", type=int, default=400, help="T taken for the equilibrium (default: 400)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--samples", arguments.samples)
    at_least_one("--rounds", arguments.rounds)
    torch.manual_seed(arguments.seed)
    for title, cell, drive in _trained(arguments) if arguments.runs else _untrained():
        _print_table(title, cell, drive, arguments)


def _untrained() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Title, cell and drive of each table."""
    for title, (build, shape) in CELLS.items():
        yield title, build(), torch.rand(shape)


def _trained(arguments: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Title, cell and drive of each table."""
    for one in load_runs(arguments.runs, data_sets=chosen(arguments.dataset)):
        cell, drive = trained_setting(one, arguments.samples)
        size = "x".join(map(str, drive.shape[1:]))
        yield f"{one.label}: {len(drive)} samples of {size}", cell.train(), drive
        # A run's numbers are the same whichever others stand before it.
        torch.manual_seed(arguments.seed)


def _print_table(title: str, cell: nn.Module, drive: Tensor, arguments: argparse.Namespace) -> None:
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
    say(f"\n**{title}**\n\n" + "\n".join(markdown(rows)) + "\n\n")
    made_on = ", ".join(f"{key} {value}" for key, value in machine().items())
    weights = "Trained weights, test images" if arguments.runs else "Random weights and drive"
    say(
        f"{weights}, seed {arguments.seed}; T = {arguments.steps}; residual of the state taken as "
        f"the equilibrium {residual:.1e}; {made_on}.\n\n"
    )
