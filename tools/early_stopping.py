#!/usr/bin/env python3
"""What it saves, and costs, to stop the images or RoIs that have settled.

They stop at CRBP.SOLVER.TEST_TOLERANCE. Every tolerance takes its turn on every batch. Prints a
Markdown table of steps, time and scores and writes it to early_stopping.md in the run's folder.

examples:
  tools/early_stopping.py outputs/shapes_crbp
  tools/early_stopping.py outputs/pathfinder_tiny_contracting --tolerances 0.01 0.003 --batch-size 1
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.runs import load_run
from crbp_d2.analysis.steps import step_evaluators
from crbp_d2.analysis.stopping import evaluate_tolerances, markdown
from crbp_d2.data.storage import write_whole
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    parser.add_argument(
        "--tolerances", nargs="+", type=float, default=[0.1, 0.05, 0.02, 0.01], metavar="TOLERANCE"
    )
    parser.add_argument("--dataset", help="default: the first of the run's DATASETS.TEST")
    parser.add_argument("--batches", type=int, help="default: the whole data set")
    parser.add_argument("--batch-size", type=int, default=1, help="contour images (default: 1)")
    parser.add_argument("--output", type=Path, help="folder (default: that of the run)")
    arguments = parser.parse_intermixed_args()
    if arguments.batches is not None and arguments.batches < 1:
        parser.error(f"--batches must be at least 1, got {arguments.batches}")
    try:
        run = load_run(arguments.run, arguments.opts, data_set=arguments.dataset)
        name = run.data_set
        loader = scoring_batches(run.cfg, name, arguments.batch_size)
        number = min(arguments.batches or len(loader), len(loader))
        part = number < len(loader)
        batches = tqdm(islice(loader, number), name, number)
        evaluators = step_evaluators(name, partial=part)
        found = evaluate_tolerances(run.model, batches, arguments.tolerances, evaluators)
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    lines = list(markdown(found))
    if part:
        lines += ["", f"Of the first {number} of {len(loader)} batches alone."]
    table = "\n".join(lines) + "\n"
    output = arguments.output or run.folder
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "early_stopping.md", table.encode())
    sys.stdout.write(table)


if __name__ == "__main__":
    run_alone(main)
