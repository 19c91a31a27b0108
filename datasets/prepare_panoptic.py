#!/usr/bin/env python
"""Check a panoptic data set and derive what training needs from it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from crbp_d2.data import PanopticSource, describe, prepare
from crbp_d2.data.parallel import add_workers_option
from crbp_d2.launch import run_alone

EPILOG = """example:
  datasets/prepare_panoptic.py --name street_train --images street/train \\
      --panoptic-json street/panoptic_train.json --panoptic-pngs street/panoptic_train

Prints what is wrong with the data, or what they hold and the lines of Python that use them.
Training does the same by itself when it loads the data; here it happens beforehand.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="my_data", help="name to register the data set under")
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--panoptic-json", required=True, help="JSON in COCO's panoptic format")
    parser.add_argument("--panoptic-pngs", required=True, help="folder of PNGs with segment ids")
    parser.add_argument(
        "--instances-json", help="JSON in COCO's instance format (default: derived from the PNGs)"
    )
    parser.add_argument(
        "--cache", help="folder for derived files (default: crbp_d2_cache beside the JSON)"
    )
    parser.add_argument(
        "--intensity-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 255 where images have more than 8 bits, as 0 4095",
    )
    add_workers_option(parser)
    options = vars(parser.parse_args(arguments))
    name, workers = options.pop("name"), options.pop("workers")
    setup_logger(name="crbp_d2")
    source = PanopticSource.locate(**options)
    manifest = prepare(source, workers=workers)
    sys.stdout.write(describe(name, source, manifest, options["cache"]) + "\n")


if __name__ == "__main__":
    run_alone(main)
