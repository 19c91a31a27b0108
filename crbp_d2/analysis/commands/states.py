"""States of trained models up to and after the step they were trained for, in two dimensions.

Writes state_space.png, .pdf, .json (the distances between the states at N and at the last step, and
the Kolmogorov-Smirnov tests between runs) and .npz (the points of the figure).

example:
  tools/analyze.py states C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --output outputs/states
"""

from __future__ import annotations

import argparse
import statistics

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands.arguments import (
    add_scoring,
    at_least_one,
    chosen,
    shared_folder,
)
from crbp_d2.analysis.runs import load_runs
from crbp_d2.analysis.state_space import collect_states, project, write_results
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_scoring(parser)
    parser.add_argument(
        "--samples", type=int, metavar="N", default=1000, help="images or RoIs (default: 1000)"
    )
    parser.add_argument(
        "--factor", type=int, metavar="N", default=4, help="last step over N (default: 4)"
    )


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--samples", arguments.samples)
    at_least_one("--factor", arguments.factor)
    folder = shared_folder(arguments)
    spaces = {}
    data_sets = chosen(arguments.dataset)
    for one in load_runs(arguments.runs, arguments.opts, data_sets=data_sets, same_data=True):
        loader = scoring_batches(one.cfg, one.data_set, arguments.batch_size)
        states = collect_states(
            one.model,
            tqdm(loader, one.label),
            steps=arguments.factor * one.trained_steps,
            samples=arguments.samples,
        )
        spaces[one.label] = project(states, one.trained_steps)
    tests = write_results(folder, spaces)
    for label, space in spaces.items():
        median = statistics.median_high(space.distance.tolist())
        say(f"{label}: median distance {median:.4f}, {len(space.distance)} samples\n")
    for pair, test in tests.items():
        say(
            f"{pair}: KS statistic {test['statistic']:.3f}, p {test['p']:.2g}, ratio of medians "
            f"{test['median_ratio']:.3g}, n {test['n_first']} and {test['n_second']}\n"
        )
    say(f"Figure and numbers: {folder}/state_space.*\n")
