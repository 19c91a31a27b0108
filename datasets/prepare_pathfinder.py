#!/usr/bin/env python
"""Write Pathfinder images and masks as PNGs, in the layout of the original data.

Drawing them on the fly (pathfinder_14_train and so on) needs none of this. An interrupted call is
continued by calling again. --sheet writes a picture to look at: images, masks, and what is what.

examples:
  datasets/prepare_pathfinder.py --preset 14@300 --seed 3 --output datasets/pathfinder/test
  datasets/prepare_pathfinder.py --preset 14@300 --sheet pathfinder_14.png
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from crbp_d2.data import DatasetError
from crbp_d2.data.parallel import add_workers_option
from crbp_d2.data.pathfinder import preset, write_images
from crbp_d2.data.pathfinder.sheet import write_contact_sheet
from crbp_d2.launch import run_alone
from crbp_d2.mistakes import refuse
from crbp_d2.output import say


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", help="folder; one for each preset and seed")
    parser.add_argument(
        "--sheet", metavar="FILE.png", help="contact sheet of the preset; needs no --output"
    )
    parser.add_argument("--preset", default="14@300", help="'<length>@<size>', 'small', 'tiny'")
    parser.add_argument("--images", type=int, default=10_000, help="default 10000")
    parser.add_argument("--seed", type=int, default=1, help="default 1, that of the training sets")
    add_workers_option(parser)
    args = parser.parse_args(arguments)
    if args.output is None and args.sheet is None:
        parser.error(
            "give --output FOLDER for images, --sheet FILE.png for a contact sheet, or both"
        )
    logging.basicConfig(level=logging.INFO)
    try:
        config = preset(args.preset)
        if args.sheet is not None:
            write_contact_sheet(args.sheet, config, seed=args.seed)
            say(f"{args.sheet}\n")
        if args.output is not None:
            listing = write_images(
                args.output, config, seed=args.seed, count=args.images, workers=args.workers
            )
            say(f"{listing}\n")
    except DatasetError:
        raise
    except ValueError as error:
        refuse(parser, error)


if __name__ == "__main__":
    run_alone(main)
