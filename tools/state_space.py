#!/usr/bin/env python3
"""States of trained models up to and after the step they were trained for, in two dimensions.

RUN is the output folder of a training, or LABEL=FOLDER. Writes state_space.png, .pdf, .json (the
distances between the states at N and at the last step, and the Kolmogorov-Smirnov tests between
runs) and .npz (the points of the figure).

example:
  tools/state_space.py C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --output outputs/states
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.runs import load_run, require_different_labels, split_label
from crbp_d2.analysis.state_space import collect_states, project, write_results
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, collect, write, print the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", type=Path, help="folder (default: that of the only run)")
    parser.add_argument("--dataset", help="default: the first of each run's DATASETS.TEST")
    parser.add_argument("--samples", type=int, default=1000, help="images or RoIs (default: 1000)")
    parser.add_argument("--factor", type=int, default=4, help="last step over N (default: 4)")
    parser.add_argument("--batch-size", type=int, help="contour images (default: 16)")
    arguments = parser.parse_args()
    if arguments.output is None and len(arguments.runs) > 1:
        parser.error("several runs need --output FOLDER")
    spaces = {}
    try:
        require_different_labels([split_label(text)[0] for text in arguments.runs])
        for text in arguments.runs:
            run = load_run(text, data_set=arguments.dataset)
            trained = run.cfg.CRBP.SOLVER.STEPS
            loader = scoring_batches(run.cfg, run.data_set, arguments.batch_size)
            states = collect_states(
                run.model,
                tqdm(loader, run.label),
                steps=arguments.factor * trained,
                samples=arguments.samples,
            )
            spaces[run.label] = project(states, trained)
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    folder = arguments.output or split_label(arguments.runs[0])[1]
    tests = write_results(folder, spaces)
    for label, space in spaces.items():
        median = float(sorted(space.distance)[len(space.distance) // 2])
        sys.stdout.write(f"{label}: median distance {median:.4f}, {len(space.distance)} samples\n")
    for pair, test in tests.items():
        sys.stdout.write(
            f"{pair}: KS statistic {test['statistic']:.3f}, p {test['p']:.2g}, ratio of medians "
            f"{test['median_ratio']:.3g}, n {test['n_first']} and {test['n_second']}\n"
        )
    sys.stdout.write(f"Figure and numbers: {folder}/state_space.*\n")


if __name__ == "__main__":
    run_alone(main)
