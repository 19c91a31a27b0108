"""What commands share that measure circuits: untrained cells, or those of trained models."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.gradients import trained_setting
from benchmarks.measure import machine
from crbp_d2.analysis.commands.arguments import at_least_one, chosen
from crbp_d2.analysis.runs import load_runs
from crbp_d2.output import say
from crbp_d2.progress import tqdm

Untrained = Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]
"""Title -> what builds a cell, and the shape of its drive."""


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Those of all these commands.

    Args:
        parser: of the command.
        rounds: how often times are taken by default.
    """
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help="OUTPUT_DIR of a training, or LABEL=RUN; a table for each (default: untrained cells)",
    )
    parser.add_argument("--dataset", metavar="NAME", help="with RUN: in place of its DATASETS.TEST")
    parser.add_argument(
        "--samples", type=int, default=8, help="with RUN: RoIs or images (default: 8)"
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="interleaved timings (default: %(default)s)"
    )
    parser.add_argument(
        "--exact-steps", type=int, default=400, help="T taken for the equilibrium (default: 400)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def circuits(
    arguments: argparse.Namespace, untrained: Untrained
) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Title, cell and drive of each table; random numbers begin anew with each.

    Args:
        arguments: of `add_arguments`.
        untrained: cells where no RUN is named.

    Raises:
        ConfigurationError: an argument is out of its range, or a RUN can't be read.
    """
    at_least_one("--samples", arguments.samples)
    at_least_one("--rounds", arguments.rounds)
    at_least_one("--exact-steps", arguments.exact_steps)
    torch.manual_seed(arguments.seed)
    if not arguments.runs:
        for title, (build, shape) in untrained.items():
            yield title, build(), torch.rand(shape)
        return
    for one in load_runs(arguments.runs, data_sets=chosen(arguments.dataset)):
        cell, drive = trained_setting(one, arguments.samples)
        size = "x".join(map(str, drive.shape[1:]))
        yield f"{one.label}: {len(drive)} samples of {size}", cell.train(), drive
        # A run's numbers are the same whichever others stand before it.
        torch.manual_seed(arguments.seed)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """A bar that is told what is being measured."""
    with tqdm(desc=title, unit="measurement") as bar:

        def report(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        yield report


def print_table(
    title: str, lines: Iterator[str], arguments: argparse.Namespace, about: str
) -> None:
    """Print a table of one circuit, with what it was made of and on.

    Args:
        title: over it.
        lines: of Markdown.
        arguments: of `add_arguments`.
        about: further facts below it.
    """
    say(f"\n**{title}**\n\n" + "\n".join(lines) + "\n\n")
    made_on = ", ".join(f"{key} {value}" for key, value in machine().items())
    weights = "Trained weights, test images" if arguments.runs else "Random weights and drive"
    say(f"{weights}, seed {arguments.seed}; {about}; {made_on}.\n\n")
