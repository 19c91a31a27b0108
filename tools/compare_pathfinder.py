#!/usr/bin/env python3
"""Train the quick Pathfinder task by every learning algorithm, and print one table.

An interrupted call is continued by calling again.

example:
  tools/compare_pathfinder.py --algorithms bptt crbp --seeds 1 2 3 --jobs 2
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.pathfinder_runs import CONTENDERS, markdown, train_all
from crbp_d2.launch import run_alone

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    """Parse the arguments, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--algorithms",
        nargs="+",
        choices=list(CONTENDERS),
        default=list(CONTENDERS),
        metavar="NAME",
        help=f"of {', '.join(map(repr, CONTENDERS))} (default: all)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, a core each")
    parser.add_argument("--output", type=Path, default=Path("outputs/pathfinder_comparison"))
    arguments = parser.parse_args()
    outcomes = train_all(
        CONFIGS, arguments.algorithms, arguments.seeds, arguments.output, jobs=arguments.jobs
    )
    count = len(arguments.algorithms) * len(arguments.seeds)
    table = markdown(list(tqdm(outcomes, "models", count)))
    sys.stdout.write("\n".join(table) + "\n")


if __name__ == "__main__":
    run_alone(main)
