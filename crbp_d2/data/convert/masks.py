"""A mask an object: black, and another colour where the object is.

By default every image has a folder with images/ and masks/, as in the 2018 Data Science Bowl.
Patterns tell other layouts, where {id} is the name of an image, and {class} that of a class.

examples:
  datasets/convert.py masks stage1_train --class nucleus --fill background \\
      --out nuclei --name nuclei_train
  datasets/convert.py masks scans --images 'img/{id}.png' --masks 'msk/{class}/{id}_*.png' \\
      --out scans --name scans_train
"""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

from ..validate import DatasetError
from .files import read_mask
from .patterns import find_annotated
from .scene import Annotated, Category, Entry, Named, Shape, Size

_IMAGES, _MASKS = "{id}/images/*", "{id}/masks/*"
_CLASS = "object"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Format`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of images and masks")
    parser.add_argument(
        "--images", default=_IMAGES, metavar="PATTERN", help=f"of the images (default: {_IMAGES})"
    )
    parser.add_argument(
        "--masks", default=_MASKS, metavar="PATTERN", help=f"of the masks (default: {_MASKS})"
    )
    parser.add_argument(
        "--class",
        dest="object_class",
        metavar="NAME",
        help=f"of all objects, where the pattern has no {{class}} (default: {_CLASS})",
    )


def find(arguments: argparse.Namespace) -> Annotated:
    """See `Format`."""
    folder: Path = arguments.folder
    given: str | None = arguments.object_class
    if given is not None and "{class}" in arguments.masks:
        raise DatasetError(f"--class {given}: the pattern of the masks has {{class}}; remove one")
    images, belonging = find_annotated(folder, arguments.images, folder, arguments.masks)
    masks: dict[str, list[tuple[Path, str]]] = {name: [] for name in images}
    classes = set()
    for file, image, name in belonging:
        category = name or given or _CLASS
        masks[image].append((folder / file, category))
        classes.add(category)
    _require_masks(folder, images, masks, arguments.masks)
    entries = [
        Entry(number, images[name], masks[name])
        for number, name in enumerate(sorted(images), start=1)
    ]
    categories = [Category(name) for name in sorted(classes)]
    named = [] if given is None else [Named("--class", [given])]
    return Annotated(folder, categories, entries, _shapes, named)


def _require_masks(
    folder: Path, images: dict[str, str], masks: dict[str, list[tuple[Path, str]]], pattern: str
) -> None:
    """An image may have no object; but then there is a folder of masks, be it an empty one."""
    parent = str(PurePosixPath(pattern).parent)
    if any(part in parent for part in ("{class}", "*", "?")):
        return  # It can't be told which folder that is.
    for name, found in masks.items():
        place = folder / parent.replace("{id}", name)
        if not found and not place.is_dir():
            raise DatasetError(
                f"{place}: no such folder of masks, for the image {images[name]}; add it, empty if "
                "there is no object, or remove the image"
            )


def _shapes(masks: list[tuple[Path, str]], size: Size) -> list[Shape]:
    return [Shape.cut(str(path), category, read_mask(path, size)) for path, category in masks]
