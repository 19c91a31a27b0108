#!/usr/bin/env python
"""Write Pathfinder images and masks as PNGs, in the layout of the original data.

Drawing them on the fly (pathfinder_14_train and so on) needs none of this. An interrupted call is
continued by calling again.
"""

import argparse
import logging
import sys

from crbp_d2.data import DatasetError
from crbp_d2.data.pathfinder import preset, write_images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python datasets/prepare_pathfinder.py --preset 14@300 --images 10000 "
        "--seed 3 --output datasets/pathfinder/test",
    )
    parser.add_argument("--output", required=True, help="folder; one for each preset and seed")
    parser.add_argument("--preset", default="14@300", help="'<length>@<size>', 'small', 'tiny'")
    parser.add_argument("--images", type=int, default=10_000, help="default 10000")
    parser.add_argument("--seed", type=int, default=1, help="default 1, that of the training sets")
    parser.add_argument("--workers", type=int, help="processes (default: all cores, at most 8)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    try:
        listing = write_images(
            args.output,
            preset(args.preset),
            seed=args.seed,
            count=args.images,
            workers=args.workers,
        )
    except (DatasetError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{listing}\n")


if __name__ == "__main__":
    main()
