"""States of trained models up to and after the step they were trained for, in two dimensions.

Writes state_space.png, .pdf, .json (the distances between the states at N and at the last step, and
the Kolmogorov-Smirnov tests between runs) and .npz (the points of the figure). A distance is taken
in two ways: relative to the state at N, and, as published, as a mean square on the components.

examples:
  tools/analyze.py states C-RBP=outputs/pathfinder_tiny_crbp BPTT=outputs/pathfinder_tiny_bptt \\
      --output outputs/states
  runs of different N, asked at one step as in the paper (BPTT over 6 steps, C-RBP over 20):
  tools/analyze.py states BPTT=outputs/bptt_6 C-RBP=outputs/crbp_20 --last-step 40 --output figures
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
from crbp_d2.analysis.runs import load_runs, trained_steps_of
from crbp_d2.analysis.state_space import Tests, collect_states, project, write_results
from crbp_d2.config import require_few_steps
from crbp_d2.core import ConfigurationError
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_scoring(parser)
    parser.add_argument(
        "--samples", type=int, metavar="N", default=1000, help="images or RoIs (default: 1000)"
    )
    last = parser.add_mutually_exclusive_group()
    last.add_argument(
        "--factor", type=int, metavar="N", default=4, help="last step over N (default: 4)"
    )
    last.add_argument(
        "--last-step", type=int, metavar="T", help="the last step itself, the same for all runs"
    )
    parser.add_argument(
        "--components",
        type=int,
        metavar="K",
        default=2,
        help="that the mean square is of; two are drawn (default: 2)",
    )


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--samples", arguments.samples)
    at_least_one("--factor", arguments.factor)
    if arguments.components < 2:
        raise ConfigurationError(f"--components must be at least 2, got {arguments.components}")
    if arguments.last_step is not None:
        _require_reached(arguments)
    folder = shared_folder(arguments)
    spaces = {}
    data_sets = chosen(arguments.dataset)
    for one in load_runs(arguments.runs, arguments.opts, data_sets=data_sets, same_data=True):
        loader = scoring_batches(one.cfg, one.data_set, arguments.batch_size)
        states = collect_states(
            one.model,
            tqdm(loader, one.label),
            steps=arguments.last_step or arguments.factor * one.trained_steps,
            samples=arguments.samples,
        )
        spaces[one.label] = project(states, one.trained_steps, arguments.components)
    relative, published = write_results(folder, spaces)
    for label, space in spaces.items():
        median = statistics.median_high(space.distance.tolist())
        square = statistics.median_high(space.mean_square.tolist())
        say(
            f"{label}: median distance {median:.4f}, mean square {square:.4g}, "
            f"{len(space.distance)} samples, step {space.trained_steps} to "
            f"{space.projected.shape[1]}\n"
        )
    _say_tests("distance", relative)
    _say_tests("mean square", published)
    say(f"Figure and numbers: {folder}/state_space.*\n")


def _require_reached(arguments: argparse.Namespace) -> None:
    """No run was trained for more steps than the last one; before any is computed."""
    require_few_steps("--last-step", arguments.last_step)
    for text in arguments.runs:
        trained = trained_steps_of(text, arguments.opts)
        if arguments.last_step < trained:
            raise ConfigurationError(
                f"--last-step {arguments.last_step}: {text} was trained for {trained} steps; give "
                "at least as many"
            )


def _say_tests(distance: str, tests: Tests) -> None:
    for pair, test in tests.items():
        say(
            f"{pair}, {distance}: KS statistic {test['statistic']:.3f}, p {test['p']:.2g}, ratio "
            f"of medians {test['median_ratio']:.3g}, n {test['n_first']} and {test['n_second']}\n"
        )
