#!/usr/bin/env python
"""Convert annotations in other formats to COCO's panoptic format, to train on them.

Writes FOLDER/panoptic_NAME.json, the PNGs in FOLDER/panoptic_NAME, and an entry of
FOLDER/datasets.yaml, the file for the config key DATASETS.FILE. Called again for another split, it
adds to that, and gives both the same classes. Images stay where they are. An interrupted call can
be repeated. `datasets/convert.py FORMAT --help` explains a format, with examples.

example:
  datasets/convert.py instances street/instances_train.json street/train --stuff road sky \\
      --out street --name street_train
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from crbp_d2.data.convert import FORMATS, convert_format
from crbp_d2.data.convert.arguments import add_choices
from crbp_d2.launch import run_alone
from crbp_d2.output import say


def main(words: Sequence[str] | None = None) -> None:
    style = argparse.RawDescriptionHelpFormatter
    program = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parsers = program.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name, module in FORMATS.items():
        explanation = module.__doc__ or ""
        title = explanation.partition("\n")[0]
        parser = parsers.add_parser(
            name, help=title, description=explanation, formatter_class=style
        )
        module.add_arguments(parser)
        add_choices(parser)
    arguments = program.parse_args(words)
    setup_logger(name="crbp_d2")
    name = arguments.format
    del arguments.format
    summary = convert_format(name, arguments)
    listed = arguments.out / "datasets.yaml"
    say(f"{summary}\n\n{arguments.name} is in {listed}\n")


if __name__ == "__main__":
    run_alone(main)
