#!/usr/bin/env python3
"""A trained model as one file, which PyTorch or ONNX Runtime runs without this package.

The file takes an image (C, H, W) in float32, as the model does: resized, 0..255, in the channel
order of INPUT.FORMAT. It returns boxes (N, 4), classes (N,), scores (N,) and masks (N, 1, S, S) as
probabilities within the boxes, then of a panoptic model sem_seg (K, H, W) as logits; of a contour
model sem_seg alone. docs/export.md says how they become masks and segments.

It is written once it has answered as the model does, on an image and on a part of it turned, of
another size.

examples:
  tools/export.py outputs/shapes_settling --format torchscript --output shapes.pt
  tools/export.py crbp://pathfinder_tiny_contracting --format torch-export --output contours.pt2
  tools/export.py outputs/coco --format onnx --image street.jpg --output street.onnx
"""

import argparse
import functools
from pathlib import Path

from crbp_d2.analysis.commands.arguments import add_overrides, require_folder
from crbp_d2.analysis.exported import example_image, export_run
from crbp_d2.analysis.exporting import FORMATS, output_names
from crbp_d2.analysis.images import read_each
from crbp_d2.analysis.runs import load_run
from crbp_d2.core import ConfigurationError
from crbp_d2.launch import run_alone
from crbp_d2.mistakes import refuse
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def main() -> None:
    """Parse the arguments, load, write, check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="OUTPUT_DIR of a training, one of the checkpoints in it, or crbp://NAME",
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--image",
        type=Path,
        help="on which the model finds something (default: the first of DATASETS.TEST)",
    )
    add_overrides(parser)
    arguments = parser.parse_args()
    try:
        write(arguments)
    except (KeyError, ValueError) as error:
        refuse(parser, error)


def write(arguments: argparse.Namespace) -> None:
    """The file, and a line about each image that it was asked about."""
    output = arguments.output
    require_folder(output.parent)
    if output.is_dir():
        raise ConfigurationError(f"--output {output}: is a folder; name a file")
    if arguments.image is not None and not arguments.image.is_file():
        raise ConfigurationError(f"--image {arguments.image}: there is no such file")
    run = load_run(arguments.run, arguments.opts, needs_data=arguments.image is None)
    (image,) = read_each([arguments.image], functools.partial(example_image, run))
    progress = functools.partial(tqdm, desc="comparing")
    for found in export_run(run, image, arguments.format, output, progress):
        objects = "" if found.objects is None else f", {found.objects} objects"
        say(
            f"{found.size[0]} x {found.size[1]} pixels{objects}: as the model but for "
            f"{found.differing:.2%} of the pixels; largest difference {found.largest:.1g}\n"
        )
    say(f"{output}: {', '.join(output_names(run.model))}\n")


if __name__ == "__main__":
    run_alone(main)
