"""Sizes of images, and the values of masks and label maps, read without loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..derive import EXIF_ORIENTATION, missing, unreadable
from ..reading import is_deep, open_image, require_whole
from ..validate import DatasetError
from .scene import Size

# As Pillow's `ImageOps.exif_transpose` and Detectron2's `read_image` turn images upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def measured(path: Path) -> tuple[Size, int]:
    """Size of an image as it is stored, and the orientation that EXIF says it has, 1 to 8.

    Raises:
        DatasetError: the image is missing or can't be read.
    """
    if not path.is_file():
        raise DatasetError(missing(path, "add the image, or correct its name in the annotations"))
    try:
        with open_image(path) as image:
            return image.size, image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise DatasetError(unreadable(path, error)) from error


def upright_size(size: Size, orientation: int) -> Size:
    """The size once an image is upright, as this package and Detectron2 read it."""
    return size if orientation < 5 else size[::-1]


def upright(ids: npt.NDArray[np.int32], orientation: int) -> npt.NDArray[np.int32]:
    """(height, width) as stored to the same upright."""
    turn = _UPRIGHT.get(orientation)
    return ids if turn is None else np.array(Image.fromarray(ids).transpose(turn))


def read_labels(path: Path, size: Size | None) -> npt.NDArray[np.int64]:
    """The values of a label map, (height, width); indices where it has a palette.

    Args:
        size: of its image; None takes any.

    Raises:
        DatasetError: it is missing, of another size, or has no single whole number a pixel.
    """
    return _read(path, size, _label_values)


def read_mask(path: Path, size: Size) -> npt.NDArray[np.bool_]:
    """The pixels of one object, (height, width): what is not black.

    Args:
        size: of its image.

    Raises:
        DatasetError: it is missing, of another size, or has more than black and one other colour.
    """
    return _read(path, size, _mask_values)


def _read(path: Path, size: Size | None, values: Callable[[Image.Image], npt.NDArray[Any]]) -> Any:
    if not path.is_file():
        raise DatasetError(missing(path, "add it"))
    try:
        with open_image(path) as image:
            if image.format in ("JPEG", "MPO"):
                raise DatasetError("a JPEG, which doesn't keep values; export it as PNG")
            require_whole(image)
            require_size(image.size, size or image.size)
            return values(image)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise DatasetError(unreadable(path, error)) from error


def require_size(found: Size, expected: Size) -> None:
    """Raises `DatasetError` if something has not the size of its image."""
    if found == expected:
        return
    cure = "export it in the size of the image"
    if found == expected[::-1]:
        # Or cameras' photographs, which are stored lying down and turned when they are shown.
        cure += ", or give --as-stored if it fits the image as it is stored, not upright"
    raise DatasetError(
        f"is {found[0]} x {found[1]} pixels, but its image {expected[0]} x {expected[1]}; {cure}"
    )


def _label_values(image: Image.Image) -> npt.NDArray[np.int64]:
    if image.mode == "F":
        raise DatasetError("values that are no whole numbers; save it as PNG of 8 or 16 bits")
    values = np.asarray(image)
    if values.ndim == 3:
        colours = values[..., :3] if image.mode in ("RGB", "RGBA") else values[..., :1]
        if is_deep(image) or (colours != colours[..., :1]).any():
            raise DatasetError(
                f"colours (mode {image.mode}), not one number a pixel; save it as grey or palette "
                "PNG of 8 or 16 bits"
            )
        values = colours[..., 0]
    return values.astype(np.int64)


def _mask_values(image: Image.Image) -> npt.NDArray[np.bool_]:
    # A palette may have black anywhere, and what is seen counts.
    if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;"):
        image = image.convert("RGB")
    values = np.asarray(image)
    colours = values.reshape(-1, values.shape[2]) if values.ndim == 3 else values.reshape(-1, 1)
    inside: npt.NDArray[np.bool_] = colours.any(axis=1)
    others = np.unique(colours[inside], axis=0)
    if len(others) > 1:
        raise DatasetError(
            f"{len(others)} values beside 0, but a mask has one object; save it in black and "
            "white, or take the format 'labels' for maps of several objects"
        )
    return inside.reshape(values.shape[:2])
