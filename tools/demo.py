#!/usr/bin/env python3
"""Predictions on any images.

A panoptic model: image, its segments (with --compare also those of a second model) and, of images
of the first data set of DATASETS.TEST, the ground truth, side by side in IMAGE.png.

A contour model (Pathfinder; grey images): the step from which on each pixel stayed in the predicted
contour, in IMAGE.png and IMAGE.pdf; the steps as numbers, 0 for never, in IMAGE.csv (with --compare
in IMAGE_LABEL.csv).

examples:
  tools/demo.py --config-file configs/quick/shapes_crbp.yaml --count 4 --output pictures \\
      MODEL.WEIGHTS outputs/shapes_crbp/model_final.pth
  tools/demo.py --config-file outputs/coco/config.yaml --input holiday 'street/*.jpg' \\
      --output pictures --compare outputs/coco_bptt/config.yaml outputs/coco_bptt/model_final.pth \\
      MODEL.WEIGHTS outputs/coco/model_final.pth
  tools/demo.py --config-file configs/quick/pathfinder_bptt.yaml --steps 24 --output pictures \\
      MODEL.WEIGHTS outputs/pathfinder_tiny_bptt/model_final.pth
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.images import (
    ContourSample,
    contour_samples,
    find_images,
    intensity_range_of,
    is_contour_model,
    load_predictors,
    output_names,
    panoptic_truth,
    require_readable,
)
from crbp_d2.analysis.predictions import write_claim_picture, write_panoptic_picture
from crbp_d2.analysis.runs import Run
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import KeyValueParser
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, load, draw."""
    parser = KeyValueParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="IMAGE",
        help="files, folders and patterns (default: images of the first test data set)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--count", type=int, default=8, help="images without --input (default: %(default)s)"
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="draw a second model beside it"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        help="of the first model, given twice also of the second (default: folders of weights)",
    )
    parser.add_argument(
        "--steps", type=int, help="last step of a contour model (default: twice the trained)"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="such as MODEL.WEIGHTS FILE"
    )
    arguments = parser.parse_args()
    for option in ("count", "steps"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            parser.error(f"--{option} must be at least 1, got {value}")
    try:
        paths = find_images(arguments.input or ())
        runs = load_predictors(
            arguments.config_file,
            arguments.opts,
            compared=arguments.compare,
            labels=arguments.label,
            needs_data=not paths,
        )
        values = intensity_range_of(runs[0].cfg)
        require_readable(tqdm(paths, "reading", disable=not paths), values)
        draw = draw_contours if is_contour_model(runs[0]) else draw_panoptic
        draw(arguments, runs, paths)
    except (KeyError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{arguments.output}\n")


def draw_panoptic(arguments: argparse.Namespace, runs: list[Run], paths: list[Path]) -> None:
    """Pictures of panoptic models."""
    if arguments.steps is not None:
        raise ConfigurationError(
            "--steps is for contour models; of a panoptic model set CRBP.SOLVER.TEST_STEPS"
        )
    truth = panoptic_truth(runs[0])
    if not paths and truth is None:
        raise ConfigurationError("DATASETS.TEST names no panoptic data; name some, or give --input")
    paths = paths or truth.images(arguments.count)
    outputs = output_names(paths, arguments.output)
    for path, output in zip(tqdm(paths, "pictures"), outputs, strict=True):
        write_panoptic_picture(path, output, runs, runs[0].metadata, truth)


def draw_contours(arguments: argparse.Namespace, runs: list[Run], paths: list[Path]) -> None:
    """Pictures and numbers of contour models."""
    last = arguments.steps
    if last is None:
        last = 2 * max(run.cfg.CRBP.SOLVER.STEPS for run in runs)
    samples = [ContourSample(path) for path in paths]
    samples = samples or contour_samples(runs[0], arguments.count)
    outputs = output_names([sample.path for sample in samples], arguments.output)
    for sample, output in zip(tqdm(samples, "pictures"), outputs, strict=True):
        write_claim_picture(sample, output, runs, last)


if __name__ == "__main__":
    run_alone(main)
