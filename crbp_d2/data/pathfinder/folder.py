"""Pathfinder images on disk, in the layout of the original data.

    <root>/curv_contour_length_14/imgs/<batch>/sample_<i>.png
    <root>/curv_contour_length_14/seg/<batch>/sample_<i>.png      0 and 255

A list file names the images of a split, one a line, relative to the root. The label that follows
each means nothing here: `curv_contour_length_14/imgs/1/sample_0.png 0`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from crbp_d2.data.files import absolute
from crbp_d2.data.reading import open_image, require_eight_bits
from crbp_d2.data.validate import DatasetError

from .draw import Bytes
from .images import TRAINED_AT, Record, set_pathfinder_metadata

IMAGES, MASKS = "imgs", "seg"
MASK_THRESHOLD = 0.2


def _mask_path(image: Path, listed_in: str) -> Path:
    folders = list(image.parts)
    if IMAGES not in folders[:-1]:
        raise DatasetError(
            f"{listed_in}: {image} has no folder {IMAGES!r} in its path, so its mask can't be "
            f"found; images are expected as <name>/{IMAGES}/<batch>/sample_<i>.png"
        )
    # The last one: the root itself may lie in a folder of that name.
    last = len(folders) - 1 - folders[::-1].index(IMAGES)
    return Path(*folders[:last], MASKS, *folders[last + 1 :])


def _natural(path: Path) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def find_images(root: Path, list_file: Path | None = None) -> list[tuple[Path, Path]]:
    """Paths of the images and their masks; none is opened.

    Args:
        root: what the paths in the list are relative to.
        list_file: names the images; without one all below `root` are taken, in natural order.

    Raises:
        DatasetError: there is no list file or no image, or an image lies in no folder `imgs`.
    """
    if list_file is None:
        images = sorted(root.glob(f"**/{IMAGES}/*/*.png"), key=_natural)
        origin = str(root)
    else:
        if not os.path.isfile(list_file):
            raise DatasetError(f"{list_file}: no such list file; check the path")
        try:
            lines = list_file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{list_file}: not a text file ({error}); name one image a line"
            ) from error
        images = [root / line.split()[0] for line in lines if line.strip()]
        origin = str(list_file)
    if not images:
        raise DatasetError(
            f"{origin}: no images; expected <name>/{IMAGES}/<batch>/sample_<i>.png below {root} "
            "(datasets/prepare_pathfinder.py writes them)"
        )
    return [(image, _mask_path(image, origin)) for image in images]


def _read_grey(path: Path) -> Image.Image:
    if not os.path.isfile(path):
        raise DatasetError(
            f"{path}: no such file; call datasets/prepare_pathfinder.py again (it adds what is "
            "missing), or take the image from the list file"
        )
    try:
        require_eight_bits(str(path))
        with open_image(path) as image:
            return image.convert("L")
    except DatasetError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise DatasetError(
            f"{path}: not a readable image ({error}); delete it and call "
            "datasets/prepare_pathfinder.py again, or copy it anew"
        ) from error


def read_pair(image_path: Path, mask_path: Path, size: int) -> tuple[Bytes, Bytes]:
    """Read an image and its mask, with the transform of the authors' training code.

    Both are reduced to `size` pixels by Pillow's bicubic filter; mask pixels above 0.2 count.

    Returns:
        The image `(size, size)` in 0..255 and the mask `(size, size)` in {0, 1}.

    Raises:
        DatasetError: a file is missing, unreadable, of another shape than expected, or its mask
            is empty or not in 0..255.
    """
    image, mask = _read_grey(image_path), _read_grey(mask_path)
    if image.size != mask.size:
        raise DatasetError(
            f"{mask_path}: {mask.size} pixels, but {image_path} has {image.size}; one of them is "
            "of another data set"
        )
    if image.width != image.height or image.width < size:
        raise DatasetError(
            f"{image_path}: {image.size} pixels; expected a square of at least {size}. "
            "Register the folder with an image_size that its files have"
        )
    highest = mask.getextrema()[1]
    if highest == 1:
        raise DatasetError(f"{mask_path}: a mask of 0 and 1; multiply it by 255")
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        mask = mask.resize((size, size), Image.Resampling.BICUBIC)
    positive = np.asarray(mask) > MASK_THRESHOLD * 255
    if not positive.any():
        raise DatasetError(
            f"{mask_path}: no target pixel; every Pathfinder mask has some: draw or copy it anew"
        )
    return np.array(image), positive.astype(np.uint8)


def _records(root: Path, list_file: Path | None, image_size: int | None) -> list[Record]:
    pairs = find_images(root, list_file)
    size = image_size if image_size is not None else _read_grey(pairs[0][0]).width
    return [
        {
            "file_name": str(image),
            "sem_seg_file_name": str(mask),
            "image_id": number,
            "height": size,
            "width": size,
        }
        for number, (image, mask) in enumerate(pairs)
    ]


def register_pathfinder_folder(
    name: str,
    root: str | Path,
    *,
    list_file: str | Path | None = None,
    image_size: int | None = TRAINED_AT,
) -> None:
    """Register images on disk as the data set `name`. Nothing is read before the set is used.

    Args:
        root: the folder that holds `curv_contour_length_N`.
        list_file: names the images of this split; without one all below `root` are taken.
        image_size: side to which images and masks are reduced; None takes that of the first.

    Raises:
        DatasetError: a path can't be one.
    """
    root = absolute(root)
    listed = None if list_file is None else absolute(list_file)
    DatasetCatalog.register(name, lambda: _records(root, listed, image_size))
    set_pathfinder_metadata(name, image_root=str(root))
