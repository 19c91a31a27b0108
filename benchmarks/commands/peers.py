"""This project's solvers and adjoints beside torchdeq and plain BPTT: evaluations, exactness, time.

Prints one Markdown table for each cell: evaluations of the cell, products with its Jacobian, cosine
and norm ratio to the exact gradient at the equilibrium, memory that autograd saves, and time
relative to the first row. The cell is that of the mask head, untrained and driven by noise; of a
RUN it is the circuit of the trained model, driven by its test images. Needs torchdeq
(pip install torchdeq).

examples:
  tools/benchmark.py peers --rounds 5 > peers.md
  tools/benchmark.py peers outputs/shapes_settling crbp://pathfinder_tiny_contracting
"""

from __future__ import annotations

import argparse
import importlib.util

from benchmarks.commands import circuits
from benchmarks.commands.circuits import print_table, progress
from benchmarks.peers import compare, markdown
from crbp_d2.core import ConfigurationError, MaskHGRUCell

CELLS: circuits.Untrained = {
    "mask head: 256 channels, 14x14, 4 RoIs": (
        lambda: MaskHGRUCell(channels=256),
        (4, 256, 14, 14),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    circuits.add_arguments(parser, rounds=5)


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    if importlib.util.find_spec("torchdeq") is None:
        raise ConfigurationError("the comparison needs torchdeq: pip install torchdeq")
    for title, cell, drive in circuits.circuits(arguments, CELLS):
        with progress(title) as report:
            rows, residual = compare(
                cell,
                drive,
                rounds=arguments.rounds,
                exact_steps=arguments.exact_steps,
                progress=report,
            )
        about = f"residual of the state taken as the equilibrium {residual:.1e}"
        print_table(title, markdown(rows), arguments, about)
