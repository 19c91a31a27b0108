"""Labelme's JSON files, one an image: polygons, rectangles and circles.

Shapes of the same label and group_id are one object. The images lie where imagePath says.

example:
  datasets/convert.py labelme street/train --stuff road sky --out street --name street_train
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

from crbp_d2.progress import tqdm

from ..fields import Field, Json, finite, objects, read_entry, text, whole
from ..instances import read_mask
from ..parallel import ordered_map
from ..validate import DatasetError, Problems, read_json
from .scene import Annotated, Category, Entry, Shape, Size

_KINDS = ("polygon", "rectangle", "circle")
_FILE = {
    "imagePath": Field(text, "the path of the image from the JSON"),
    "shapes": Field(objects, "a list"),
    "imageWidth": Field(lambda value: value and whole(1)(value), "pixels", default=None),
    "imageHeight": Field(lambda value: value and whole(1)(value), "pixels", default=None),
}


def _point(value: Any) -> tuple[float, float]:
    x, y = objects(value)
    return float(finite(x)), float(finite(y))


def _points(value: Any) -> list[tuple[float, float]]:
    return [_point(point) for point in objects(value)]


def _group(value: Any) -> int | str | None:
    return value if value is None or isinstance(value, str) else whole(0)(value)


def _kind(value: Any) -> str:
    kind = value or "polygon"  # as in files of old versions
    if kind in _KINDS:
        return str(kind)
    raise ValueError


_SHAPE = {
    "label": Field(text, "the name of a class, without line breaks"),
    "points": Field(_points, "a list of [x, y]"),
    "group_id": Field(_group, "a whole number or null", default=None),
    "shape_type": Field(
        _kind,
        f"one of {', '.join(_KINDS)}; draw it anew so, or remove it",
        default="polygon",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Format`."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of the JSON files, also in folders below"
    )


def find(arguments: argparse.Namespace) -> Annotated:
    """See `Format`."""
    folder: Path = arguments.folder
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; check the path")
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise DatasetError(f"{folder}: there is no JSON file; check the path")
    found = ordered_map(_read, paths, workers=arguments.workers)
    # disable=None: no bar where the output isn't a terminal.
    contents = list(tqdm(found, folder.name, len(paths), unit="file", disable=None))
    images = [
        # ".." without a look at links, as labelme does.
        Path(os.path.normpath((path.parent / content["imagePath"]).absolute()))
        for path, content in zip(paths, contents, strict=True)
    ]
    root = Path(os.path.commonpath([folder.absolute(), *(image.parent for image in images)]))
    entries = [
        Entry(
            number,
            image.relative_to(root).as_posix(),
            (path, content["shapes"]),
            _size(content),
            path,
        )
        for number, (path, content, image) in enumerate(
            zip(paths, contents, images, strict=True), start=1
        )
    ]
    names = {shape["label"] for content in contents for shape in content["shapes"]}
    return Annotated(root, [Category(name) for name in sorted(names)], entries, _shapes)


def _size(content: Json) -> Size | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    return None if width is None or height is None else (width, height)


def _read(path: Path) -> Json:
    """A file's fields in normal form, without the copy of the image that it may have."""
    problems = Problems(str(path))
    content = read_entry(read_json(path), _FILE, "labelme's file", problems.add)
    problems.raise_if_any()
    content["imagePath"] = content["imagePath"].replace("\\", "/")  # as written on Windows
    content["shapes"] = [
        read_entry(shape, _SHAPE, f"shapes[{index}]", problems.add)
        for index, shape in enumerate(content["shapes"])
    ]
    problems.raise_if_any()
    return content


def _shapes(annotation: tuple[Path, list[Json]], size: Size) -> list[Shape]:
    path, shapes = annotation
    masks: dict[tuple[str, int | str], npt.NDArray[np.bool_]] = {}
    places: dict[tuple[str, int | str], str] = {}
    for index, shape in enumerate(shapes):
        place = f"{path}, shapes[{index}]"
        group = shape.get("group_id")
        key = (shape["label"], f"alone {index}" if group is None else group)
        try:
            mask = _mask(shape, size)
        except ValueError as error:
            raise DatasetError(
                f"{place} ({shape['label']!r}): {error}; draw it anew, or remove it"
            ) from error
        masks[key] = masks[key] | mask if key in masks else mask
        places.setdefault(key, place)
    return [Shape.cut(places[key], key[0], mask) for key, mask in masks.items()]


def _mask(shape: Json, size: Size) -> npt.NDArray[np.bool_]:
    """(height, width): the pixels whose centres are inside."""
    width, height = size
    points = shape["points"]
    if shape["shape_type"] == "polygon":
        outline = points
    elif len(points) != 2:
        raise ValueError(f"a {shape['shape_type']} has two points, not {len(points)}")
    elif shape["shape_type"] == "circle":
        (x, y), on_edge = points
        rows, columns = np.ogrid[:height, :width]
        squared = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2
        inside: npt.NDArray[np.bool_] = squared < np.sum(np.subtract(on_edge, points[0]) ** 2)
        return inside
    else:
        (left, top), (right, bottom) = points
        outline = [(left, top), (right, top), (right, bottom), (left, bottom)]
    flat = [number for point in outline for number in point]
    run_lengths, _ = read_mask([flat], height, width)
    decoded: npt.NDArray[np.bool_] = mask_util.decode(run_lengths).astype(bool)
    return decoded
