"""What Panoptic FPN trains on, derived for one image from its panoptic PNG."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import rgb2id
from PIL import Image

from .fields import Json
from .files import save_image
from .outlines import MAX_EDGES, count_edges, mask_to_polygons, too_many
from .reading import IntensityRange, eight_bits, is_deep, open_image, read_whole, require_whole
from .storage import spelled_alike
from .validate import DatasetError

# Value of unlabelled pixels in stuff maps, `ignore_label` in Detectron2's metadata.
UNLABELLED = 255
# Value of thing pixels in stuff maps.
_THING = 0
EXIF_ORIENTATION = 0x0112
# Of a PNG's ids that the JSON hasn't, and the other way round.
_IDS_SHOWN = 10
_ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Derivation:
    """Where to read and write, and the classes.

    Args:
        images, panoptic_pngs: folders to read from.
        stuff_maps, converted_images: folders to write to.
        intensity_range: of images of more than eight bits; see `crbp_d2.data.reading`.
        thing_ids: category ids of things.
        stuff_classes: category id of stuff -> value in the stuff map, 1 to 254.
        with_instances: whether to derive instance annotations.
    """

    images: Path
    panoptic_pngs: Path
    stuff_maps: Path
    converted_images: Path
    intensity_range: IntensityRange | None
    thing_ids: frozenset[int]
    stuff_classes: dict[int, int]
    with_instances: bool


@dataclass
class DerivedImage:
    """Result for one image; the stuff map is on disc, and the image if it was `converted` to eight
    bits. Of no use if there are problems.

    `segments` are those of the panoptic JSON with area and box measured; `instances` are COCO
    instance annotations without `id`, masks as polygons (run lengths where `iscrowd`).
    """

    annotation: Json
    segments: list[Json] = field(default_factory=list)
    instances: list[Json] = field(default_factory=list)
    converted: bool = False
    problems: list[str] = field(default_factory=list)


def stuff_map_name(panoptic_file_name: str) -> str:
    """Path of a stuff map in its folder, from that of the panoptic PNG; different for each."""
    if panoptic_file_name.endswith(".png") and not panoptic_file_name.endswith("..png"):
        return panoptic_file_name
    # Two dots, so that `scene` doesn't meet `scene.png`.
    return f"{panoptic_file_name}..png"


def converted_image_name(file_name: str) -> str:
    """Path of a converted image in its folder, from that of the image."""
    return f"{file_name}.png"


def derive_image(derivation: Derivation, pair: tuple[Json, Json]) -> DerivedImage:
    """Checks an image and its PNG against the JSON, writes the stuff map, measures the segments.

    Args:
        pair: an image and its annotation, of a JSON that `read_panoptic_json` accepted.
    """
    image, annotation = pair
    result = DerivedImage(annotation)
    expected = (image["width"], image["height"])
    image_path = derivation.images / image["file_name"]
    converted = _check_image(image_path, expected, derivation.intensity_range, result.problems)
    png_path = derivation.panoptic_pngs / annotation["file_name"]
    panoptic = _read_panoptic(png_path, expected, result.problems)
    if panoptic is not None:
        _check_ids(png_path, np.unique(panoptic), annotation, result.problems)
    if panoptic is None or result.problems:
        return result

    edges = 0
    stuff_values = np.full(panoptic.shape, UNLABELLED, dtype=np.uint8)
    for segment in annotation["segments_info"]:
        mask = (panoptic == segment["id"]).view(np.uint8)
        category = segment["category_id"]
        value = derivation.stuff_classes.get(category, _THING)
        np.copyto(stuff_values, value, where=mask.view(bool))
        measured = {
            **segment,
            "area": int(np.count_nonzero(mask)),
            "bbox": list(cv2.boundingRect(mask)),
        }
        result.segments.append(measured)
        if derivation.with_instances and category in derivation.thing_ids:
            edges += 0 if segment["iscrowd"] else count_edges(mask)
            if edges > MAX_EDGES:
                return DerivedImage(annotation, problems=[f"{png_path}: {too_many(edges)}"])
            result.instances.append(_instance(mask, measured, annotation["image_id"]))
    stuff_map = Image.fromarray(stuff_values)
    _save(stuff_map, derivation.stuff_maps / stuff_map_name(annotation["file_name"]))
    if converted is not None:
        _save(converted, derivation.converted_images / converted_image_name(image["file_name"]))
        result.converted = True
    return result


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path, "PNG")


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


def _check_image(
    path: Path,
    expected: tuple[int, int],
    values: IntensityRange | None,
    problems: list[str],
) -> Image.Image | None:
    """The image in eight bits if it is deeper, or None after adding to `problems`."""
    # Path.is_file() raises an error for a name that is too long.
    if not os.path.isfile(path):
        problems.append(missing(path, "add the image or correct its file_name"))
        return None
    try:
        with open_image(path) as image:
            size = image.size
            # Detectron2 turns images upright when it reads them.
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
                size = size[::-1]
            _require_size(size, expected)
            with path.open("rb") as file:
                converted = eight_bits(read_whole(file), values)
            if converted is None:
                # All of a JPEG is read at an eighth of the size, in a fraction of the time.
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds for broken files
        problems.append(unreadable(path, error))
        return None
    return converted


def _read_panoptic(path: Path, expected: tuple[int, int], problems: list[str]) -> np.ndarray | None:
    """(height, width) int32 segment ids, or None after adding to `problems`."""
    if not os.path.isfile(path):
        problems.append(missing(path, "add the PNG or correct its file_name"))
        return None
    try:
        with open_image(path) as image:
            mode = image.mode
            if image.format in ("JPEG", "MPO"):
                raise DatasetError("a JPEG, which doesn't keep segment ids; write a PNG")
            if mode not in ("RGB", "RGBA"):
                raise DatasetError(
                    f"pixels of mode {mode}, but segment ids are encoded in RGB; write it with "
                    "panopticapi.utils.id2rgb"
                )
            if is_deep(image):
                raise DatasetError("more than 8 bits a value, but segment ids are encoded in 8")
            require_whole(image)
            _require_size(image.size, expected)
            pixels = np.asarray(image)
    except Exception as error:  # see above
        problems.append(unreadable(path, error))
        return None
    ids = np.empty(pixels.shape[:2], dtype=np.int32)
    # All at once, panopticapi's function takes 24 bytes a pixel.
    for top in range(0, len(pixels), _ROWS_AT_A_TIME):
        rows = slice(top, top + _ROWS_AT_A_TIME)
        ids[rows] = rgb2id(pixels[rows])
    return ids


def missing(path: Path, cure: str) -> str:
    """The message about a file that is not there; the cure is another if one is called alike."""
    if os.path.lexists(path):
        kind = "a folder, a pipe or a link that leads nowhere"
        return f"{path}: no file ({kind}); put the file in its place"
    alike = spelled_alike(path)
    if alike is not None:
        # Accents can be encoded in two ways that look the same.
        cure = f"there is {ascii(alike)}, but {ascii(path.name)} is asked for; rename one of them"
    return f"{path}: no such file; {cure}"


def unreadable(path: Path, error: Exception) -> str:
    """The message about an image that Pillow can't read, or that was refused."""
    if isinstance(error, DatasetError):
        return f"{path}: {error}"
    return f"{path}: can't be read ({error}); export or copy it again"


def _require_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    if size != expected:
        raise DatasetError(
            f"is {size[0]} x {size[1]} pixels, the JSON's entry of the image says "
            f"{expected[0]} x {expected[1]}; correct the JSON or replace the file"
        )


def _check_ids(path: Path, found: np.ndarray, annotation: Json, problems: list[str]) -> None:
    """Adds to `problems` where the ids in a PNG, `found`, are not those of the JSON."""
    in_json = np.array([segment["id"] for segment in annotation["segments_info"]], dtype=np.int32)
    for values, wrong in (
        (np.setdiff1d(in_json, found), "segment {} of the JSON has no pixel; remove it there"),
        (
            np.setdiff1d(found[found != 0], in_json),
            "pixels of segment {}, which the JSON lacks; add it there",
        ),
    ):
        # A file that isn't of this kind can have an id for every pixel.
        if len(values) > _IDS_SHOWN:
            problems.append(
                f"{path}: {len(values)} ids are in one of JSON and PNG only; write it with "
                "panopticapi.utils.id2rgb"
            )
        problems += [f"{path}: {wrong.format(value)}" for value in values[:_IDS_SHOWN]]
