#!/usr/bin/env python3
"""Predictions on any images.

Panoptic models: image, the segments of each model and, of images of the first data set of
DATASETS.TEST, the ground truth, side by side in IMAGE.png. --segments FOLDER also writes the
segments of a model in COCO's panoptic format, at the size of the images: panoptic.json and
panoptic/IMAGE.png.

Contour models (Pathfinder; grey images): the step from which on each pixel stayed in the predicted
contour, in IMAGE.png and IMAGE.pdf; the steps as numbers, 0 for never, in IMAGE.csv (of several
models in IMAGE_LABEL.csv). They look for contours like those they were trained on. A drawing of
one's own (--input) shows, for crbp://pathfinder_tiny_*, bright lines about 1.5 pixels wide on
black, in dashes of 3 pixels with gaps of 2, one of them with a dot of 3.5 pixels on its free
end: the contour to trace; or all of that larger, in the same proportions. Dark lines on paper,
colours, transparency, uneven light and wider lines are seen to, which is told; the picture shows
what the model was given.

examples:
  tools/demo.py outputs/shapes_settling --count 4 --output pictures
  tools/demo.py C-RBP=outputs/coco BPTT=outputs/coco_bptt --input holiday 'street/*.jpg' \\
      --output pictures
  tools/demo.py outputs/coco --input holiday --output pictures --segments holiday_segments
  tools/demo.py crbp://pathfinder_tiny_contracting --input drawing.png --output pictures
  tools/demo.py outputs/pathfinder_tiny_bptt --steps 24 --output pictures
"""

import argparse
import contextlib
import functools
from pathlib import Path

from crbp_d2.analysis.commands.arguments import (
    add_data_set,
    add_overrides,
    add_runs,
    at_least_one,
)
from crbp_d2.analysis.drawings import strokes_of
from crbp_d2.analysis.images import (
    contour_samples,
    find_images,
    intensity_range_of,
    is_contour_model,
    load_predictors,
    output_names,
    own_sample,
    panoptic_truth,
    read_each,
    require_photograph,
)
from crbp_d2.analysis.predictions import write_claim_picture, write_panoptic_picture
from crbp_d2.analysis.runs import Run
from crbp_d2.config import require_few_steps
from crbp_d2.core import ConfigurationError
from crbp_d2.evaluation.segments import Keep, root_of, writing_segments
from crbp_d2.launch import run_alone
from crbp_d2.mistakes import refuse
from crbp_d2.output import remark, say
from crbp_d2.progress import tqdm


def main() -> None:
    """Parse the arguments, load, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_runs(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="IMAGE",
        help="files, folders with all below them, and patterns (default: images of the first test "
        "data set)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--segments",
        type=Path,
        metavar="FOLDER",
        help="new, for the segments of one panoptic model in COCO's panoptic format",
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        default=8,
        help="images without --input (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="last step of contour models (default: twice the trained)",
    )
    add_data_set(parser)
    add_overrides(parser)
    arguments = parser.parse_args()
    try:
        at_least_one("--count", arguments.count)
        at_least_one("--steps", arguments.steps)
        require_few_steps("--steps", arguments.steps or 0)
        written = [folder for folder in (arguments.output, arguments.segments) if folder]
        paths = find_images(arguments.input or (), written)
        runs = load_predictors(
            arguments.runs, arguments.opts, data_set=arguments.dataset, needs_data=not paths
        )
        draw = draw_contours if is_contour_model(runs[0]) else draw_panoptic
        draw(arguments, runs, paths)
    except (KeyError, ValueError) as error:
        refuse(parser, error)
    say(f"{arguments.output}\n")


def draw_panoptic(arguments: argparse.Namespace, runs: list[Run], paths: list[Path]) -> None:
    """Pictures of panoptic models."""
    if arguments.steps is not None:
        raise ConfigurationError(
            "--steps is for contour models; of a panoptic model set CRBP.SOLVER.TEST_STEPS"
        )
    truth = panoptic_truth(runs[0])
    if not paths and truth is None:
        raise ConfigurationError("DATASETS.TEST names no panoptic data; name some, or give --input")
    if arguments.segments is not None and len(runs) > 1:
        raise ConfigurationError("--segments are those of a single RUN; name one, or leave it out")
    check = functools.partial(require_photograph, values=intensity_range_of(runs[0].cfg))
    read_each(tqdm(paths, "reading", disable=not paths), check)
    paths = paths or truth.images(arguments.count)
    outputs = output_names(paths, arguments.output)
    metadata = runs[0].metadata
    with contextlib.ExitStack() as stack:
        keep: Keep | None = None
        if arguments.segments is not None:
            keep = stack.enter_context(writing_segments(arguments.segments, paths, metadata))
        for path, output in zip(tqdm(paths, "pictures"), outputs, strict=True):
            write_panoptic_picture(path, output, runs, metadata, truth, keep)
    if arguments.segments is not None:
        say(f"{arguments.segments}: segments of the images in {root_of(paths)}\n")


def draw_contours(arguments: argparse.Namespace, runs: list[Run], paths: list[Path]) -> None:
    """Pictures and numbers of contour models."""
    if arguments.segments is not None:
        raise ConfigurationError("--segments are those of a panoptic model; leave it out")
    last = arguments.steps
    if last is None:
        last = 2 * max(run.trained_steps for run in runs)
    strokes = strokes_of(runs[0])
    read = functools.partial(own_sample, strokes=strokes)
    samples = read_each(tqdm(paths, "reading", disable=not paths), read)
    lines = [f"{sample.path}: {'; '.join(sample.notices)}" for sample in samples if sample.notices]
    if paths and strokes is not None:
        lines.append(f"{runs[0].label} was trained on {strokes}; others it may miss")
    remark("".join(f"{line}\n" for line in lines))
    samples = samples or contour_samples(runs[0], arguments.count)
    outputs = output_names([sample.path for sample in samples], arguments.output)
    for sample, output in zip(tqdm(samples, "pictures"), outputs, strict=True):
        write_claim_picture(sample, output, runs, last)


if __name__ == "__main__":
    run_alone(main)
