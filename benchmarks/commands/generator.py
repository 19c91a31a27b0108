"""Images a second of the Pathfinder generator, and the mean size of its targets.

Prints them beside the published sizes.

example:
  tools/benchmark.py generator --presets 14@300 14@150 --images 100
"""

from __future__ import annotations

import argparse

from benchmarks.generator import PRESETS, report
from crbp_d2.analysis.commands.arguments import at_least_one
from crbp_d2.output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="default: all")
    parser.add_argument("--images", type=int, default=200, help="images a repeat (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts (default: 5)")


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--images", arguments.images)
    at_least_one("--repeats", arguments.repeats)
    table = report(arguments.presets, images=arguments.images, repeats=arguments.repeats)
    say(table + "\n")
