#!/usr/bin/env python
"""Images a second of the Pathfinder generator, and the mean size of its targets."""

import argparse
import sys

from crbp_d2.data.pathfinder.benchmark import PRESETS, report
from crbp_d2.launch import run_alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/benchmark_pathfinder.py --presets 14@300 14@150 --images 100",
    )
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help="default: all")
    parser.add_argument("--images", type=int, default=200, help="images a repeat (default 200)")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts (default 5)")
    args = parser.parse_args()
    sys.stdout.write(report(args.presets, images=args.images, repeats=args.repeats) + "\n")


if __name__ == "__main__":
    run_alone(main)
