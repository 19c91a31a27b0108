#!/usr/bin/env python3
"""Training curves of one or several runs in one figure: scores, losses and dynamics.

Reads metrics.json and config.yaml of each run; no model is loaded, and a training may still be
going on. Writes FIGURE.png, FIGURE.pdf and the numbers behind them, FIGURE.csv.

examples:
  tools/plot_curves.py outputs/shapes_crbp
  tools/plot_curves.py C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --x images --output figures/pathfinder
  tools/plot_curves.py outputs/pathfinder_14_hgru --published pathfinder_14:crbp,bptt
"""

import argparse
import sys
from pathlib import Path

from crbp_d2.analysis.curves import WINDOW, draw_curves, published_lines, read_log, write_csv
from crbp_d2.analysis.figures import save_figure
from crbp_d2.analysis.published import FINAL
from crbp_d2.analysis.runs import split_label
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, read, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="output folder of a training, or LABEL=FOLDER"
    )
    parser.add_argument(
        "--output",
        metavar="FIGURE",
        type=Path,
        help="path without ending (default: curves, in the folder of a single run)",
    )
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
        help=f"lay the paper's scores over the own ones; NAME is one of {', '.join(FINAL)}",
    )
    arguments = parser.parse_args()
    if arguments.smooth < 1:
        parser.error(f"--smooth must be at least 1, got {arguments.smooth}")
    output = arguments.output
    if output is None:
        folder = split_label(arguments.runs[0])[1] if len(arguments.runs) == 1 else Path()
        output = folder / "curves"
    elif output.suffix in (".png", ".pdf", ".csv"):
        output = output.with_suffix("")
    try:
        published = published_lines(arguments.published) if arguments.published else None
        runs = [read_log(text) for text in arguments.runs]
        figure = draw_curves(
            runs, images=arguments.x == "images", window=arguments.smooth, published=published
        )
    except (KeyError, ValueError) as error:
        parser.error(str(error))
    numbers = output.with_name(f"{output.name}.csv")
    write_csv(numbers, runs, published)
    files = [*save_figure(figure, output), numbers]
    sys.stdout.write("".join(f"{path}\n" for path in files))


if __name__ == "__main__":
    run_alone(main)
