"""Predicted segments in COCO's panoptic format: a PNG of ids for each image, and one JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.core import ConfigurationError
from crbp_d2.data.files import png_names, save_image
from crbp_d2.data.storage import replacing, write_json

Json = dict[str, Any]
Map = npt.NDArray[np.int32]
Keep: TypeAlias = Callable[[Path, tuple[int, int], Map, Sequence[Json]], None]
"""`keep(path, (height, width), segments, infos)`: of an image of that size, segment ids of any size
and their infos in a model's form."""

JSON, PNGS = "panoptic.json", "panoptic"


def in_categories(infos: Sequence[Json], metadata: Any) -> list[Json]:
    """`id` and `category_id` of segments; left out are those of classes that the data set does not
    have, as the thing class that stands in where there are no things.

    Args:
        infos: per segment `id`, `isthing` and contiguous `category_id`.
        metadata: of the data set.
    """
    known = {
        True: _inverse(metadata.thing_dataset_id_to_contiguous_id),
        False: _inverse(metadata.stuff_dataset_id_to_contiguous_id),
    }
    return [
        {"id": info["id"], "category_id": known[bool(info["isthing"])][info["category_id"]]}
        for info in infos
        if info["category_id"] in known[bool(info["isthing"])]
    ]


def categories_of(metadata: Any) -> list[Json]:
    """The categories of a panoptic JSON, by their ids.

    Args:
        metadata: of a panoptic data set, which itself may be missing.
    """
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    found = []
    for kind, ids in (("thing", things), ("stuff", stuff)):
        names, colours = metadata.get(f"{kind}_classes"), metadata.get(f"{kind}_colors")
        for category, number in ids.items():
            # Class 0 of the stuff head stands for all things.
            if kind == "stuff" and number == 0:
                continue
            entry = {"id": category, "name": names[number], "isthing": int(kind == "thing")}
            found.append(entry if colours is None else {**entry, "color": list(colours[number])})
    return sorted(found, key=lambda category: category["id"])


@contextmanager
def writing_segments(folder: Path, images: Sequence[Path], metadata: Any) -> Iterator[Keep]:
    """Yields what takes the segments of an image; after the block `folder` holds `panoptic.json`
    and `panoptic/*.png`, or is not there if it fails.

    Args:
        folder: new or empty.
        images: all that are to come. In the JSON their names begin at `root_of` them.
        metadata: of the data set whose classes they have.

    Raises:
        ConfigurationError: there is something in the folder.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigurationError(f"--segments {folder}: holds something; name another")
    root = root_of(images)
    shown = {path: path.absolute().relative_to(root).as_posix() for path in images}
    names = dict(zip(shown, png_names(list(shown.values())), strict=True))
    content: Json = {"images": [], "annotations": [], "categories": categories_of(metadata)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as fresh:

        def keep(path: Path, size: tuple[int, int], segments: Map, infos: Sequence[Json]) -> None:
            name, number = names[path], len(content["images"]) + 1
            ids, listed = _described(segments, size, in_categories(infos, metadata))
            (fresh / PNGS / name).parent.mkdir(parents=True, exist_ok=True)
            save_image(Image.fromarray(id2rgb(ids)), fresh / PNGS / name, "PNG")
            height, width = size
            content["images"].append(
                {"id": number, "file_name": shown[path], "height": height, "width": width}
            )
            content["annotations"].append(
                {"image_id": number, "file_name": name, "segments_info": listed}
            )

        (fresh / PNGS).mkdir()
        yield keep
        write_json(fresh / JSON, content)


def root_of(images: Sequence[Path]) -> Path:
    """The folder, from the root, that all images lie in or below."""
    return Path(os.path.commonpath([path.absolute().parent for path in images]))


def _described(
    segments: Map, size: tuple[int, int], listed: Sequence[Json]
) -> tuple[Map, list[Json]]:
    """Segment ids at a size, 0 for pixels of none that is listed, and COCO's infos of those that
    are left there."""
    height, width = size
    ids = np.asarray(
        cv2.resize(segments.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST),
        dtype=np.int32,
    )
    infos, kept = [], np.zeros_like(ids)
    for segment in listed:
        mask = (ids == segment["id"]).astype(np.uint8)
        area = int(np.count_nonzero(mask))
        if area:
            kept[mask > 0] = segment["id"]
            box = [int(value) for value in cv2.boundingRect(mask)]
            infos.append({**segment, "iscrowd": 0, "area": area, "bbox": box})
    return kept, infos


def _inverse(mapping: Mapping[int, int]) -> dict[int, int]:
    return {value: key for key, value in mapping.items()}
