"""Does a trained model settle, and does its answer stay? One verdict, with the numbers behind it.

Writes stability.json, .png and .pdf to the folder of each run; with --output there, of several runs
to a folder for each.

example:
  tools/analyze.py stability outputs/pathfinder_tiny_crbp
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands.arguments import (
    add_scoring,
    at_least_one,
    chosen,
    own_folders,
)
from crbp_d2.analysis.runs import load_runs
from crbp_d2.analysis.stability import measure_dynamics, write_report
from crbp_d2.analysis.steps import evaluate_steps, scale_of, step_evaluators
from crbp_d2.config import final_node
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    add_scoring(parser)
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        default=32,
        help="images or RoIs for the dynamics (default: 32)",
    )


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--samples", arguments.samples)
    folders = own_folders(arguments)
    for one in load_runs(arguments.runs, arguments.opts, data_sets=chosen(arguments.dataset)):
        # What is drawn is the same in every call: random starts, and those of power iterations.
        torch.manual_seed(0)
        loader = scoring_batches(one.cfg, one.data_set, arguments.batch_size)
        dynamics = measure_dynamics(
            one.model,
            tqdm(islice(loader, arguments.samples), f"{one.label}, dynamics"),
            trained_steps=one.trained_steps,
            samples=arguments.samples,
            bound=final_node(one.cfg.CRBP).PENALTY.LCP.BOUND,
        )
        steps = [one.trained_steps, 2 * one.trained_steps, 4 * one.trained_steps]
        evaluators = step_evaluators(one.data_set)
        found = evaluate_steps(one.model, tqdm(loader, f"{one.label}, scores"), steps, evaluators)
        score = next(iter(found[0].scores))
        folder = folders[one.label]
        line = write_report(
            folder,
            dynamics,
            {entry.step: entry.scores[score] for entry in found},
            score,
            scale_of(score),
        )
        say(f"{one.label}: {line}\n" if len(arguments.runs) > 1 else f"{line}\n")
        say(f"Figure and numbers: {folder}/stability.*\n")
