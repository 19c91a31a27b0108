"""Drawings of one's own, made into what a contour model was trained on: bright lines on black.

Shape shorthand: drawings of H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog
from PIL import Image, ImageOps

from crbp_d2.analysis.runs import Run
from crbp_d2.data import read_image
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.data.pathfinder.draw import Bytes
from crbp_d2.data.pathfinder.images import resolve
from crbp_d2.data.reading import require_eight_bits

LONGEST_SIDE = 320
"""Larger drawings are scaled down: the time of a prediction grows with the area."""
WIDER = 1.5
"""Lines that exceed those of the training images by this factor are scaled down to them."""
SMALLEST_PATCH, PATCHES = 9, 6
"""The ground of a drawing is what stays of it without all that is narrower than a patch: 1 / 6 of
its shorter side, and wider than the dot of any Pathfinder image."""
DOT = 1.5
"""What is wider than the lines by this factor may be a dot; where lines cross, it is less."""
BLACK, WHITE = 16, 250
"""A ground up to the first is black, and lines from the second on are white."""


@dataclass(frozen=True)
class Strokes:
    """What the images of a training are drawn with, in pixels.

    Attributes:
        width: of the lines.
        dash, gap: lengths along them.
        dot: diameter of the dot at the start.
    """

    width: float
    dash: float
    gap: float
    dot: float

    def __str__(self) -> str:
        return (
            f"lines {self.width:g} pixels wide, in dashes of {self.dash:g} with gaps of "
            f"{self.gap:g}, and a dot of {self.dot:g} at the start"
        )


def strokes_of(run: Run) -> Strokes | None:
    """Of the first of a run's test data sets, unless its images are files, which may be missing."""
    if not is_pathfinder(run.data_set) or run.metadata.get("image_root") is not None:
        return None
    config = resolve(DatasetCatalog.get(run.data_set)[0]["preset"])
    scale = config.image_size / config.size
    lengths = (config.thickness, config.dash_length, 2 * config.margin, 2 * config.marker_radius)
    return Strokes(*(scale * length for length in lengths))


def read_drawing(path: Path) -> Bytes:
    """A drawing in grey, upright; what is transparent is black or white, as its lines are not.

    Returns:
        `(H, W)` in 0..255.

    Raises:
        DatasetError: something would be lost, see `require_eight_bits`.
        OSError, SyntaxError, ...: what Pillow raises of files that are broken or no images.
    """
    require_eight_bits(str(path))
    with Image.open(path) as opened:
        if opened.mode[-1:] not in ("A", "a") and "transparency" not in opened.info:
            return read_image(str(path), "L")[..., 0]
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
    grey, opacity = np.asarray(upright.convert("L")), np.asarray(upright)[..., 3] / 255
    is_bright = (grey * opacity).sum() > 127.5 * opacity.sum()
    laid = grey * opacity + (0 if is_bright else 255) * (1 - opacity)
    return np.rint(laid).astype(np.uint8)


def prepare_drawing(drawing: Bytes, strokes: Strokes | None) -> tuple[Bytes, list[str]]:
    """A drawing as a contour model takes it: bright on an even black, with lines as in training.

    An image of the training itself stays as it is.

    Args:
        drawing: `(H, W)` grey, 0..255, of any size.
        strokes: of the model's training; None to leave the width of lines as it is.

    Returns:
        `(H', W')` grey, 0..255, and for each change that was made a notice of it.
    """
    notices = []
    low, high = int(drawing.min()), int(drawing.max())
    # The lines are the smaller part of a drawing.
    if np.median(drawing) > (low + high) / 2:
        drawing = np.bitwise_not(drawing)
        notices.append("dark on light: turned over")
    drawing, evened = _even(drawing)
    if evened:
        notices.append("its ground was made black and its lines white")
    width = line_width(drawing) if low < high else 0.0
    if strokes is not None and width and 2 * _depth(drawing).max() - 0.5 < DOT * width:
        notices.append(
            "has no dot; draw one at an end of a line, as the model looks for the line that has it"
        )
    factor = min(1.0, LONGEST_SIDE / max(drawing.shape))
    if strokes is not None and width > WIDER * strokes.width:
        factor = min(factor, strokes.width / width)
    if factor < 1:
        before = drawing.shape
        drawing = _reduced(drawing, factor, width, strokes)
        notices.append(
            f"scaled down from {before[1]} x {before[0]} to {drawing.shape[1]} x "
            f"{drawing.shape[0]} pixels, as its lines are about {width:.1f} wide"
        )
    return drawing, notices


def _even(drawing: Bytes) -> tuple[Bytes, bool]:
    """Bright lines on a ground that may be uneven, noisy or grey, in white on black; and whether
    they were not so before."""
    side = max(SMALLEST_PATCH, min(drawing.shape) // PATCHES)
    patch = np.ones((side, side), np.uint8)
    ground = cv2.morphologyEx(drawing, cv2.MORPH_OPEN, patch)
    if ground.max() <= BLACK and drawing.max() >= WHITE or drawing.min() == drawing.max():
        return drawing, False
    lines = cv2.subtract(drawing, ground)
    threshold, _ = cv2.threshold(lines, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    is_line = lines > threshold
    # Most of the noise of a photograph is below the first, half of what is drawn above the second.
    black, white = np.percentile(lines[~is_line], 95), np.median(lines[is_line])
    levelled = np.clip((lines - black) / max(white - black, 1), 0, 1)
    return np.rint(255 * levelled).astype(np.uint8), True


def line_width(drawing: Bytes) -> float:
    """The usual width of bright lines on black, in pixels; 0 without any.

    It is measured along their middle, to about half a pixel.
    """
    distance = _depth(drawing)
    middle = distance[(distance > 0) & (distance == cv2.dilate(distance, np.ones((3, 3))))]
    # Of an odd width it is half a pixel more than half of it, of an even one just the half.
    return float(2 * np.median(middle) - 0.5) if middle.size else 0.0


def _depth(drawing: Bytes) -> npt.NDArray[np.float32]:
    """How far each bright pixel is from black, in pixels, `(H + 2, W + 2)`; 0 of black."""
    inside = np.pad(drawing > 127, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _reduced(drawing: Bytes, factor: float, width: float, strokes: Strokes | None) -> Bytes:
    """Smaller, with lines that are made wider before where they would become too thin to see."""
    wanted = 1.0 if strokes is None else strokes.width
    more = math.floor(wanted / factor - width)
    if more > 0:
        drawing = cv2.dilate(drawing, np.ones((more + 1, more + 1), np.uint8)).astype(np.uint8)
    height, length = (max(1, round(factor * side)) for side in drawing.shape)
    small = cv2.resize(drawing, (length, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8)
