#!/usr/bin/env python3
"""Compare the learning algorithms on the mask head's and the Pathfinder model's cell.

Prints one Markdown table for each cell: cosine and norm ratio to the exact gradient, memory that
autograd saves, and time relative to one-step BPTT.

example:
  tools/compare_estimators.py --rounds 3 > docs/estimators_table.md
"""

import argparse
import platform
import sys

import torch
from tqdm import tqdm

from crbp_d2.analysis.estimators import compare, markdown
from crbp_d2.core import HGRUCell, MaskHGRUCell

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


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved timings of each")
    parser.add_argument("--steps", type=int, default=20, help="T of gradients and times")
    parser.add_argument("--exact-steps", type=int, default=400, help="T taken for the equilibrium")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for title, (build, shape) in CELLS.items():
        torch.manual_seed(arguments.seed)
        cell, drive = build(), torch.rand(shape)
        with tqdm(desc=title, unit="measurement") as bar:

            def report(what: str, bar: tqdm = bar) -> None:
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
        sys.stdout.write(f"\n{title}\n\n" + "\n".join(markdown(rows)) + "\n\n")
        sys.stdout.flush()
        sys.stdout.write(
            f"Random weights and drive, seed {arguments.seed}; T = {arguments.steps}; residual of "
            f"the state taken as the equilibrium {residual:.1e}; torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads, {platform.machine()}.\n"
        )


if __name__ == "__main__":
    main()
