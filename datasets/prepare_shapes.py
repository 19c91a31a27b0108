#!/usr/bin/env python
"""Draw shapes scenes: the embedded data set in another size, number or seed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from crbp_d2.data import ShapesConfig, make_shapes
from crbp_d2.data.files import absolute
from crbp_d2.data.parallel import add_workers_option
from crbp_d2.launch import run_alone
from crbp_d2.mistakes import refuse
from crbp_d2.output import say

EPILOG = """example, 4000 scenes of 256 x 256 pixels:
  datasets/prepare_shapes.py --output datasets/shapes_large --scenes 4000 --size 256 --seed 7

shapes_train and shapes_val need no call: they are made when first used.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="new folder for one split")
    parser.add_argument("--scenes", type=int, default=400, help="number of images (default: 400)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="another one for every split")
    add_workers_option(parser)
    options = parser.parse_args(arguments)
    setup_logger(name="crbp_d2")
    output = absolute(options.output)
    if os.path.lexists(output):
        parser.error(f"--output {options.output} exists; remove it or choose another folder")
    try:
        make_shapes(
            output,
            scenes=options.scenes,
            seed=options.seed,
            config=ShapesConfig(size=options.size),
            workers=options.workers,
        )
    except ValueError as error:
        refuse(parser, error)
    say(f"{options.scenes} scenes in {options.output}\n")


if __name__ == "__main__":
    run_alone(main)
