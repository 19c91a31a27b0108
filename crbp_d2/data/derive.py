"""What Panoptic FPN trains on, derived for one image from its panoptic PNG."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import rgb2id
from PIL import Image

from .outlines import mask_to_polygons
from .validate import Json

# Value of unlabelled pixels in stuff maps, `ignore_label` in Detectron2's metadata.
UNLABELLED = 255
# Value of thing pixels in stuff maps.
_THING = 0
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Derivation:
    """Where to read and write, and the classes.

    Args:
        images, panoptic_pngs: folders to read from.
        stuff_maps: folder to write to.
        thing_ids: category ids of things.
        stuff_classes: category id of stuff -> value in the stuff map, 1 to 254.
        with_instances: whether to derive instance annotations.
    """

    images: Path
    panoptic_pngs: Path
    stuff_maps: Path
    thing_ids: frozenset[int]
    stuff_classes: dict[int, int]
    with_instances: bool


@dataclass
class DerivedImage:
    """Result for one image; the stuff map is on disc. Of no use if there are problems.

    `segments` are those of the panoptic JSON with area and box measured; `instances` are COCO
    instance annotations without `id`, masks as polygons (run lengths where `iscrowd`).
    """

    annotation: Json
    segments: list[Json] = field(default_factory=list)
    instances: list[Json] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def stuff_map_name(panoptic_file_name: str) -> str:
    """Path of a stuff map in its folder, from that of the panoptic PNG."""
    return str(Path(panoptic_file_name).with_suffix(".png"))


def derive_image(derivation: Derivation, pair: tuple[Json, Json]) -> DerivedImage:
    """Checks an image and its PNG against the JSON, writes the stuff map, measures the segments.

    Args:
        pair: an image and its annotation, of a JSON that `read_panoptic_json` accepted.
    """
    image, annotation = pair
    result = DerivedImage(annotation)
    expected = (image["width"], image["height"])
    image_path = derivation.images / image["file_name"]
    _check_image(image_path, expected, result.problems)
    png_path = derivation.panoptic_pngs / annotation["file_name"]
    panoptic = _read_panoptic(png_path, expected, result.problems)
    if panoptic is None:
        return result
    ids, index, areas = np.unique(panoptic, return_inverse=True, return_counts=True)
    index = index.reshape(panoptic.shape)
    positions = {int(value): position for position, value in enumerate(ids)}
    _check_ids(png_path, positions, annotation, result.problems)
    if result.problems:
        return result

    stuff_values = np.full(len(ids), UNLABELLED, dtype=np.uint8)
    for segment in annotation["segments_info"]:
        position = positions[segment["id"]]
        category = segment["category_id"]
        stuff_values[position] = derivation.stuff_classes.get(category, _THING)
        mask = (index == position).astype(np.uint8)
        measured = {
            **segment,
            "iscrowd": int(segment.get("iscrowd", 0)),
            "area": int(areas[position]),
            "bbox": list(cv2.boundingRect(mask)),
        }
        result.segments.append(measured)
        if derivation.with_instances and category in derivation.thing_ids:
            result.instances.append(_instance(mask, measured, annotation["image_id"]))
    path = derivation.stuff_maps / stuff_map_name(annotation["file_name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stuff_values[index]).save(path)
    return result


def _instance(mask: np.ndarray, segment: Json, image_id: int | str) -> Json:
    shape: Json | list[list[float]]
    if segment["iscrowd"]:
        encoded = mask_util.encode(np.asfortranarray(mask))
        shape = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
    else:
        shape = mask_to_polygons(mask)
    return {
        "image_id": image_id,
        "category_id": segment["category_id"],
        "iscrowd": segment["iscrowd"],
        "area": segment["area"],
        "bbox": [float(value) for value in segment["bbox"]],
        "segmentation": shape,
    }


def _check_image(path: Path, expected: tuple[int, int], problems: list[str]) -> None:
    if not path.is_file():
        problems.append(f"{path}: no such file; add the image or correct its file_name")
        return
    try:
        with Image.open(path) as image:
            size = image.size
            # Detectron2 turns images upright when it reads them.
            if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:
                size = size[::-1]
            # All of a JPEG is read at an eighth of the size, which takes a fraction of the time.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # Pillow raises many kinds for broken files
        problems.append(f"{path}: can't be read ({error}); export or copy it again")
        return
    _check_size(path, size, expected, problems)


def _read_panoptic(path: Path, expected: tuple[int, int], problems: list[str]) -> np.ndarray | None:
    """(height, width) int32 segment ids, or None after adding to `problems`."""
    if not path.is_file():
        problems.append(f"{path}: no such file; add the PNG or correct its file_name")
        return None
    try:
        with Image.open(path) as image:
            mode, size = image.mode, image.size
            pixels = np.array(image)
    except Exception as error:  # Pillow raises many kinds for broken files
        problems.append(f"{path}: can't be read ({error}); export or copy it again")
        return None
    if mode not in ("RGB", "RGBA"):
        problems.append(
            f"{path}: pixels of mode {mode}, but segment ids are encoded in RGB; "
            "write it with panopticapi.utils.id2rgb"
        )
        return None
    _check_size(path, size, expected, problems)
    return rgb2id(pixels)


def _check_size(
    path: Path, size: tuple[int, int], expected: tuple[int, int], problems: list[str]
) -> None:
    if size != expected:
        problems.append(
            f"{path}: is {size[0]} x {size[1]} pixels, the JSON's entry of the image says "
            f"{expected[0]} x {expected[1]}; correct the JSON or replace the file"
        )


def _check_ids(
    path: Path, positions: dict[int, int], annotation: Json, problems: list[str]
) -> None:
    in_png = positions.keys() - {0}
    in_json = {segment["id"] for segment in annotation["segments_info"]}
    for value in sorted(in_json - in_png):
        problems.append(f"{path}: segment {value} of the JSON has no pixel; remove it there")
    for value in sorted(in_png - in_json):
        problems.append(f"{path}: pixels of segment {value}, which the JSON lacks; add it there")
