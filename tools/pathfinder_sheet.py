#!/usr/bin/env python
"""Contact sheets of Pathfinder images: images, masks, and overlays that say what is what."""

import argparse
import sys

from crbp_d2.data.pathfinder.sheet import write_contact_sheets
from crbp_d2.launch import run_alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/pathfinder_sheet.py --presets 14@300 tiny --output sheets",
    )
    parser.add_argument("--presets", nargs="+", default=["14@300", "25@300", "14@150", "tiny"])
    parser.add_argument("--output", default="sheets", help="folder for the PNGs (default: sheets)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=4, help="images a sheet (default 4)")
    args = parser.parse_args()
    for path in write_contact_sheets(args.output, args.presets, seed=args.seed, count=args.count):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    run_alone(main)
