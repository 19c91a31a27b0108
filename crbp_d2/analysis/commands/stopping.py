"""What it saves, and costs, to stop the images or RoIs that have settled.

They stop at CRBP.SOLVER.TEST_TOLERANCE. Every tolerance takes its turn on every batch. Prints a
Markdown table of steps, time and scores and writes it to early_stopping.md in the folder of each
run; with --output there, of several runs in a folder for each.

examples:
  tools/analyze.py stopping outputs/shapes_settling
  tools/analyze.py stopping outputs/pathfinder_tiny_contracting --tolerances 0.01 0.003
"""

from __future__ import annotations

import argparse
from itertools import islice

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands.arguments import (
    add_scoring,
    at_least_one,
    chosen,
    own_folders,
)
from crbp_d2.analysis.runs import load_runs
from crbp_d2.analysis.steps import step_evaluators
from crbp_d2.analysis.stopping import evaluate_tolerances, markdown
from crbp_d2.data.storage import write_whole
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_scoring(parser, batch_size=1)
    parser.add_argument(
        "--tolerances",
        nargs="+",
        type=float,
        default=[0.1, 0.05, 0.02, 0.01],
        metavar="TOLERANCE",
        help="default: 0.1 0.05 0.02 0.01",
    )
    parser.add_argument("--batches", type=int, metavar="N", help="default: the whole data set")


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--batches", arguments.batches)
    folders = own_folders(arguments)
    for one in load_runs(arguments.runs, arguments.opts, data_sets=chosen(arguments.dataset)):
        loader = scoring_batches(one.cfg, one.data_set, arguments.batch_size)
        number = min(arguments.batches or len(loader), len(loader))
        part = number < len(loader)
        batches = tqdm(islice(loader, number), f"{one.label}, {one.data_set}", number)
        evaluators = step_evaluators(one.data_set, partial=part)
        lines = list(
            markdown(evaluate_tolerances(one.model, batches, arguments.tolerances, evaluators))
        )
        if part:
            lines += ["", f"Of the first {number} of {len(loader)} batches alone."]
        table = "\n".join(lines) + "\n"
        output = folders[one.label]
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / "early_stopping.md", table.encode())
        say(f"**{one.label}**\n\n{table}\n" if len(arguments.runs) > 1 else table)
