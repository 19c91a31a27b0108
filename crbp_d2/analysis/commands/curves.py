"""Training curves of one or several runs in one figure: scores, losses and dynamics.

Reads metrics.json and config.yaml of each run; no model is loaded, and a training may still be
going on. Writes curves.png, .pdf and the numbers behind them, curves.csv.

examples:
  tools/analyze.py curves outputs/shapes_settling
  tools/analyze.py curves C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --x images --output figures
  tools/analyze.py curves outputs/pathfinder_14_hgru --published pathfinder_14:crbp,bptt
  tools/analyze.py curves outputs/pathfinder_14_hgru --x images --published learning_curves.csv
"""

from __future__ import annotations

import argparse

from crbp_d2.analysis.commands.arguments import (
    add_output,
    add_runs,
    at_least_one,
    shared_folder,
)
from crbp_d2.analysis.curves import WINDOW, draw_curves, published_lines, read_log, write_csv
from crbp_d2.analysis.figures import save_figure
from crbp_d2.analysis.published import FINAL
from crbp_d2.output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_runs(parser)
    parser.add_argument("--x", choices=("iterations", "images"), default="iterations")
    parser.add_argument(
        "--smooth",
        type=int,
        default=WINDOW,
        metavar="LINES",
        help="logged lines that the running median covers; 1: none (default: %(default)s)",
    )
    parser.add_argument(
        "--published",
        metavar="NAME[:MODEL,...]",
        help=f"lay the paper's scores over the own ones; NAME is one of {', '.join(FINAL)}; or "
        "FILE.csv of learning curves, with the columns source, model, images and F1 (0..1) or PQ "
        "(%%)",
    )
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--smooth", arguments.smooth)
    output = shared_folder(arguments) / "curves"
    published = published_lines(arguments.published) if arguments.published else None
    runs = [read_log(text) for text in arguments.runs]
    figure = draw_curves(
        runs, images=arguments.x == "images", window=arguments.smooth, published=published
    )
    numbers = output.with_suffix(".csv")
    write_csv(numbers, runs, published)
    files = [*save_figure(figure, output), numbers]
    say("".join(f"{path}\n" for path in files))
