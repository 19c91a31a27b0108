#!/usr/bin/env python3
"""One HTML file about trained models: their figures, and what they answer at every step.

RUN is the OUTPUT_DIR of a training, or LABEL=FOLDER. The page needs no network; the numbers behind
it are written beside it, with the ending .json.

example, two models side by side up to twice the steps of the one with more:
  tools/report.py C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --output outputs/report.html
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.page import load_runs, shared_data_set, write_page
from crbp_d2.analysis.steps import parse_steps
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, run the models, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .html")
    parser.add_argument("--dataset", help="instead of DATASETS.TEST of the runs")
    parser.add_argument("--images", type=int, default=12, help="the first of it (default: 12)")
    parser.add_argument(
        "--steps",
        help="such as 1-30, or N/2,N,2N, where N is the largest CRBP.SOLVER.STEPS of the runs "
        "(default: all from 1 to 2N)",
    )
    parser.add_argument(
        "--megabytes", type=float, default=20, help="the most the page may take (default: 20)"
    )
    arguments = parser.parse_args()
    try:
        runs = load_runs(arguments.runs, arguments.dataset)
        data_set = shared_data_set(runs)
        trained = max(run.cfg.CRBP.SOLVER.STEPS for run in runs)
        steps = parse_steps(arguments.steps or f"1-{2 * trained}", trained)
        written = write_page(
            runs,
            data_set,
            steps,
            images=arguments.images,
            megabytes=arguments.megabytes,
            output=arguments.output,
            progress=lambda images, number: tqdm(images, "images", number),
        )
    except (ValueError, KeyError) as error:
        parser.error(str(error.args[0]))
    if written.left_out:
        sys.stdout.write(f"{written.left_out}\n")
    sys.stdout.write(
        f"{written.page}: {written.images} images, {written.megabytes:.1f} MB\n"
        f"The numbers behind it: {written.numbers}\n"
    )


if __name__ == "__main__":
    run_alone(main)
