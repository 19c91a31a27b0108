"""Pictures as small as they can be and still be read, for embedding.

Shape shorthand: a picture is `(H, W)` grey or `(H, W, 3)` RGB, uint8.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from crbp_d2.analysis.figures import COLOURS
from crbp_d2.core import ConfigurationError

Picture = npt.NDArray[np.uint8]

LONGEST_SIDE = 320
FIGURE_WIDTH = 1400
SHOWN = 0.37
"""Of the size of a figure: with 300 dots an inch its text is then as large as that of the page."""
OVERLAY_COLOUR = COLOURS[5]
_JPEG_BLOCK = 16
_JPEG_QUALITY = 75


@dataclass(frozen=True)
class Sheet:
    """Frames of one size side by side, row by row.

    Attributes:
        picture: all of them.
        columns: frames a row.
        cell: height and width that each takes; larger than a frame where that was padded.
    """

    picture: Picture
    columns: int
    cell: tuple[int, int]


def fitted(picture: Picture) -> Picture:
    """The picture, scaled down to `LONGEST_SIDE` if it is larger."""
    factor = LONGEST_SIDE / max(picture.shape[:2])
    if factor >= 1:
        return picture
    height, width = (max(1, round(factor * side)) for side in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8)


def sheet(frames: Sequence[Picture]) -> Sheet:
    """Frames of one size as one picture, about as high as wide.

    Colour frames are padded to whole blocks of JPEG, so that none shows at the edge of another.
    """
    first = frames[0]
    block = _JPEG_BLOCK if first.ndim == 3 else 1
    height, width = (-(-side // block) * block for side in first.shape[:2])
    columns = math.ceil(math.sqrt(len(frames)))
    margin = [(0, height - first.shape[0]), (0, width - first.shape[1]), (0, 0)][: first.ndim]
    whole = np.zeros(
        (height * -(-len(frames) // columns), width * columns, *first.shape[2:]), np.uint8
    )
    for number, frame in enumerate(frames):
        top, left = number // columns * height, number % columns * width
        whole[top : top + height, left : left + width] = np.pad(frame, margin, "edge")
    return Sheet(whole, columns, (height, width))


def grey_png(picture: Picture) -> str:
    """The data URI of a grey picture."""
    return _uri(Image.fromarray(picture), "png", optimize=True)


def overlay_png(opacity: Picture) -> str:
    """The data URI of `OVERLAY_COLOUR`, from 0 (not to be seen) to 255 (opaque) `(H, W)`."""
    image = Image.fromarray(opacity).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    colour = bytes.fromhex(OVERLAY_COLOUR.removeprefix("#"))
    image.putpalette(colour * 256)
    return _uri(image, "png", optimize=True, transparency=bytes(range(256)))


def jpeg(picture: Picture) -> str:
    """The data URI of a colour picture."""
    return _uri(Image.fromarray(picture), "jpeg", quality=_JPEG_QUALITY, optimize=True)


def figure_png(path: Path) -> tuple[str, int, int]:
    """Data URI of a PNG, scaled down to `FIGURE_WIDTH` if it is wider, and width and height to show
    it at.

    Raises:
        ConfigurationError: the file is no picture.
    """
    try:
        with Image.open(path) as opened:
            figure = opened.convert("RGBA")
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read as a picture; make it again") from error
    white = Image.new("RGBA", figure.size, "white")
    image = Image.alpha_composite(white, figure).convert("RGB")
    if image.width > FIGURE_WIDTH:
        height = round(image.height * FIGURE_WIDTH / image.width)
        image = image.resize((FIGURE_WIDTH, height), Image.Resampling.LANCZOS)
    width, height = (round(SHOWN * side) for side in figure.size)
    return _uri(image, "png", optimize=True), width, height


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
