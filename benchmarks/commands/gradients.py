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

from benchmarks.commands import circuits
from benchmarks.commands.circuits import print_table, progress
from benchmarks.gradients import compare, markdown
from crbp_d2.core import HGRUCell, MaskHGRUCell

CELLS: circuits.Untrained = {
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
    circuits.add_arguments(parser, rounds=3)
    parser.add_argument(
        "--steps", type=int, default=20, help="T of gradients and times (default: 20)"
    )


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    for title, cell, drive in circuits.circuits(arguments, CELLS):
        with progress(title) as report:
            rows, residual = compare(
                cell,
                drive,
                steps=arguments.steps,
                rounds=arguments.rounds,
                exact_steps=arguments.exact_steps,
                progress=report,
            )
        about = f"T = {arguments.steps}; residual of the state taken as the equilibrium"
        print_table(title, markdown(rows), arguments, f"{about} {residual:.1e}")
