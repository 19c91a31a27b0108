"""A given COCO instance JSON, checked and brought into the form that this package derives itself.

Evaluators and mappers read these files with little care: annotation id 0 counts as "not matched",
an annotation without mask ends a training. So nothing reads the given file but this module.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from .categories import plain_name
from .fields import INSTANCES, Json, finite, objects, whole
from .outlines import mask_to_polygons
from .validate import Problems, duplicates, read_json, read_lists

logger = logging.getLogger(__name__)

_CURE = "correct it, or give no instance JSON to have instances derived from the PNGs"
# COCO's own boxes and polygons reach beyond the image by fractions of a pixel.
_SLACK = 1.0


def read_instances_json(path: Path, panoptic: Json) -> list[Json]:
    """The instances of a COCO instance JSON that belongs to a panoptic JSON.

    Instances without any pixel, or with an empty box, are left out with a warning, for Detectron2
    leaves them out of training.

    Args:
        panoptic: the result of `read_panoptic_json`.

    Returns:
        Annotations without `id` that Detectron2's mapper and evaluators take: `image_id`,
        `category_id`, `iscrowd`, `area`, `bbox` and `segmentation`. Masks are polygons, or run
        lengths if the file has these for a crowd. A missing area or box is that of the mask.

    Raises:
        DatasetError: with all that is wrong, or does not fit the panoptic JSON.
    """
    problems = Problems(str(path))
    content = read_lists(read_json(path), INSTANCES, "COCO's instance format", problems)
    _check_images(content["images"], panoptic["images"], problems)
    things = [category for category in panoptic["categories"] if category["isthing"]]
    _check_categories(content["categories"], things, problems)
    problems.raise_if_any()
    sizes = {image["id"]: (image["height"], image["width"]) for image in panoptic["images"]}
    category_ids = {category["id"] for category in things}
    instances = []
    for index, annotation in enumerate(content["annotations"]):
        place = f"annotations[{index}]"
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in sizes:
            problems.add(f"{place}: unknown image id {image_id!r}; {_CURE}")
        elif category_id not in category_ids:
            problems.add(f"{place}: {category_id} is no category id of a thing; {_CURE}")
        else:
            try:
                instance = _measured(annotation, *sizes[image_id])
            except ValueError as error:
                problems.add(f"{place}: {error}; {_CURE}")
            else:
                instances.append(instance)
    problems.raise_if_any()
    kept = [instance for instance in instances if instance is not None]
    if len(kept) < len(instances):
        logger.warning(
            "%s: %d instances have no pixel or an empty box and are left out",
            path,
            len(instances) - len(kept),
        )
    return kept


def _check_images(given: list[Json], expected: list[Json], problems: Problems) -> None:
    _check_same_ids("images", given, expected, problems)
    by_id: dict[int | str, Json] = {image["id"]: image for image in expected}
    for image in given:
        other = by_id.get(image["id"])
        if other is None:
            continue
        for key in ("width", "height"):
            if image.get(key, other[key]) != other[key]:
                problems.add(
                    f"image {image['id']!r}: {key} {image[key]}, but {other[key]} in the panoptic "
                    f"JSON; {_CURE}"
                )
        name = image.get("file_name") or other["file_name"]
        # Folders and endings differ between exports of the same images.
        if _stem(name) != _stem(other["file_name"]):
            problems.add(
                f"image {image['id']!r}: {name!r}, but {other['file_name']!r} in the panoptic "
                f"JSON; {_CURE}"
            )


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _check_categories(given: list[Json], things: list[Json], problems: Problems) -> None:
    _check_same_ids("categories", given, things, problems)
    names: dict[int, str] = {category["id"]: category["name"] for category in things}
    for category in given:
        name = names.get(category["id"])
        if name is not None and plain_name(category["name"]) != plain_name(name):
            problems.add(
                f"category {category['id']}: {category['name']!r}, but {name!r} in the panoptic "
                f"JSON; {_CURE}"
            )


def _check_same_ids(key: str, given: list[Json], expected: list[Json], problems: Problems) -> None:
    found, wanted = ({entry["id"] for entry in entries} for entries in (given, expected))
    for value in duplicates(entry["id"] for entry in given):
        problems.add(f"duplicate id {value!r} in {key}: keep one of them")
    for where, difference in (
        ("missing", wanted - found),
        ("not in the panoptic JSON", found - wanted),
    ):
        if difference:
            examples = ", ".join(map(repr, sorted(difference, key=str)[:3]))
            problems.add(f"{len(difference)} {key} {where} (ids {examples}, ...); {_CURE}")


def _measured(annotation: Json, height: int, width: int) -> Json | None:
    """The annotation with area, box and a mask in normal form; None if the mask is empty.

    Raises:
        ValueError: mask or box are not possible; says why.
    """
    encoded, polygons = read_mask(annotation["segmentation"], height, width)
    pixels = int(mask_util.area(encoded))
    given_box = annotation.get("bbox")
    if pixels == 0 or (given_box is not None and 0 in given_box[2:]):
        return None
    measured_box = mask_util.toBbox(encoded).tolist()
    if given_box is not None:
        _check_box(given_box, measured_box, height, width)
    shape: Json | list[list[float]]
    if polygons is not None:
        shape = polygons
    elif annotation["iscrowd"]:
        shape = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
    else:
        shape = mask_to_polygons(mask_util.decode(encoded))
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "iscrowd": annotation["iscrowd"],
        "area": annotation.get("area", pixels),
        "bbox": given_box or measured_box,
        "segmentation": shape,
    }


def read_mask(shape: Any, height: int, width: int) -> tuple[Json, list[list[float]] | None]:
    """A mask in any of COCO's forms: polygons, run lengths, or these in pycocotools' string.

    Args:
        shape: polygons [x0, y0, x1, y1, ...] in pixels from the upper left corner of the image, or
            an object of "size" and "counts".

    Returns:
        Run lengths as pycocotools has them, and the polygons in normal form if there are such.

    Raises:
        ValueError: the mask is not possible in an image of that size; says why.
    """
    if isinstance(shape, dict):
        return _read_run_lengths(shape, height, width), None
    polygons = _read_polygons(shape, height, width)
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width)), polygons


def _read_run_lengths(shape: Json, height: int, width: int) -> Json:
    if shape.get("size") != [height, width]:
        raise ValueError(
            f"the run lengths are of size {shape.get('size')!r}, the image is [{height}, {width}]"
        )
    counts = shape.get("counts")
    try:
        lengths = _uncompressed(counts) if isinstance(counts, str) else objects(counts)
        lengths = [whole(0)(length) for length in lengths]
    except ValueError:
        raise ValueError("'counts' of the run lengths must be numbers or a string") from None
    # pycocotools leaves pixels without a run as they happen to be in memory.
    if sum(lengths) != height * width:
        raise ValueError("the run lengths don't add up to the pixels of the image")
    return mask_util.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def _uncompressed(text: str) -> list[int]:
    """The run lengths of pycocotools' string: five bits a character, from the third on less the
    one before the last."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = shift = 0
    return lengths


def _read_polygons(shape: Any, height: int, width: int) -> list[list[float]]:
    """Polygons of at least three points; others have no inside and are left away, as in
    Detectron2."""
    try:
        polygons = [[float(finite(number)) for number in objects(part)] for part in objects(shape)]
    except ValueError:
        raise ValueError(
            "'segmentation' must be run lengths or a list of polygons [x0, y0, x1, y1, ...]"
        ) from None
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon of 'segmentation' has an odd number of coordinates")
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        raise ValueError("'segmentation' has no polygon of at least three points")
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    if points.min() < -_SLACK or (points.max(axis=0) > np.array([width, height]) + _SLACK).any():
        raise ValueError(f"'segmentation' reaches beyond the image of {width} x {height} pixels")
    return polygons


def _check_box(given: list[float], measured: list[float], height: int, width: int) -> None:
    left, top, right, bottom = given[0], given[1], given[0] + given[2], given[1] + given[3]
    if min(left, top) < -_SLACK or right > width + _SLACK or bottom > height + _SLACK:
        raise ValueError(
            f"'bbox' {given} reaches beyond the image of {width} x {height} pixels (it is left, "
            "top, width, height)"
        )
    covered = mask_util.iou(np.array([measured]), np.array([given]), [True])
    if covered[0, 0] < 0.5:
        raise ValueError(
            f"'bbox' {given} (left, top, width, height) covers less than half of its mask, which "
            f"lies at {measured}"
        )
