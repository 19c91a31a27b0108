"""One HTML file about trained models: their figures, and what they answer at every step.

Figures are those that the other commands left in the folders of the runs and, about several runs
together, in the folder of the page. It needs no network; the numbers behind it are written beside
it, with the ending .json.

example, two models side by side up to twice the steps of the one with more:
  tools/analyze.py page C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --output outputs/page.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crbp_d2.analysis.commands.arguments import (
    add_data_set,
    add_overrides,
    add_runs,
    chosen,
)
from crbp_d2.analysis.page import load_recurrent_runs, shared_data_set, write_page
from crbp_d2.analysis.steps import parse_steps
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_runs(parser)
    add_data_set(parser)
    parser.add_argument(
        "--images", type=int, metavar="N", default=12, help="the first of it (default: 12)"
    )
    parser.add_argument(
        "--steps",
        help="such as 1-30, or N/2,N,2N, where N is the largest CRBP.SOLVER.STEPS of the runs "
        "(default: all from 1 to 2N)",
    )
    parser.add_argument(
        "--megabytes", type=float, default=20, help="the most the page may take (default: 20)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="to write, .html"
    )
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    runs = load_recurrent_runs(arguments.runs, arguments.opts, data_sets=chosen(arguments.dataset))
    data_set = shared_data_set(runs)
    trained = max(one.trained_steps for one in runs)
    written = write_page(
        runs,
        data_set,
        parse_steps(arguments.steps or f"1-{2 * trained}", trained),
        images=arguments.images,
        megabytes=arguments.megabytes,
        output=arguments.output,
        progress=lambda images, number: tqdm(images, "images", number),
    )
    if written.left_out:
        say(f"{written.left_out}\n")
    say(
        f"{written.page}: {written.images} images, {written.megabytes:.1f} MB\n"
        f"The numbers behind it: {written.numbers}\n"
    )
