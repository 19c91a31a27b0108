#!/usr/bin/env python
"""Check a panoptic data set, derive what training needs from it, and tell what it asks for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from crbp_d2.config import read_config
from crbp_d2.data import PanopticSource, describe, prepare
from crbp_d2.data.measures import measure
from crbp_d2.data.parallel import add_workers_option
from crbp_d2.data.report import describe_demands
from crbp_d2.data.suggest import suggest
from crbp_d2.data.suggestion_file import require_folder, write_suggestions
from crbp_d2.launch import run_alone
from crbp_d2.output import say

EPILOG = """example:
  datasets/prepare_panoptic.py --name street_train --images street/train \\
      --panoptic-json street/panoptic_train.json --panoptic-pngs street/panoptic_train

Prints what is wrong with the data, or what they hold, the config keys that they call for, and the
lines of Python that use them. Training prepares the data by itself when it loads them; here it
happens beforehand.

write these keys as a config, on top of that of a model, and train by it:
  datasets/prepare_panoptic.py --name street_train --images street/train \\
      --panoptic-json street/panoptic_train.json --panoptic-pngs street/panoptic_train \\
      --config-file configs/lite0_FPN_crbp.yaml --suggest street.yaml
  tools/train_net.py --config-file street.yaml DATASETS.FILE street/datasets.yaml \\
      DATASETS.TRAIN "('street_train',)" DATASETS.TEST "('street_val',)"
"""
BASE = Path(__file__).parents[1] / "configs" / "lite0_FPN_crbp.yaml"


def size(text: str) -> int:
    """A side of inputs, from the command line."""
    pixels = int(text)
    if not 32 <= pixels <= 4096:
        raise argparse.ArgumentTypeError(f"{text}: pixels of a side, from 32 to 4096")
    return pixels


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
    parser.add_argument(
        "--config-file",
        default=os.path.relpath(BASE),
        help="of the model that shall be trained, to suggest keys for (default: %(default)s)",
    )
    parser.add_argument(
        "--suggest", metavar="FILE", help="config to write, with the keys that the data call for"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="PIXELS",
        help="shorter side of the inputs that there is time and memory for, to suggest the other "
        "keys for it (default: what the objects ask for)",
    )
    add_workers_option(parser)
    options = vars(parser.parse_args(arguments))
    name, workers = options.pop("name"), options.pop("workers")
    config_file, target = options.pop("config_file"), options.pop("suggest")
    asked_size = options.pop("size")
    setup_logger(name="crbp_d2")
    cfg = read_config(config_file)
    path = require_folder(target) if target else None
    source = PanopticSource.locate(**options)
    manifest = prepare(source, workers=workers)
    measures = measure(source)
    suggestions = suggest(measures, cfg, asked_size)
    if path:
        about = f"What {len(measures.images)} images of {name} ask for"
        write_suggestions(path, suggestions, base=config_file, about=about)
    if asked_size:
        # Sizes of objects are told as they then are.
        values = {one.key: one.value for one in suggestions}
        cfg.INPUT.MIN_SIZE_TEST = values["INPUT.MIN_SIZE_TEST"]
        cfg.INPUT.MAX_SIZE_TEST = values["INPUT.MAX_SIZE_TEST"]
    asked = describe_demands(measures, suggestions, cfg, config_file)
    cache = options["cache"]
    say(describe(name, source, manifest, cache, measures=measures, asked=asked) + "\n")


if __name__ == "__main__":
    run_alone(main)
