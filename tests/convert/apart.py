"""Panoptic data taken apart into other formats, and what comes back."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import rgb2id
from PIL import Image

from crbp_d2.data.outlines import mask_to_polygons
from crbp_d2.launch import run_alone
from tests.data.panoptic_data import Written
from tests.data.test_tools import tool

Segment = tuple[str, int, bytes]
"""Class, whether it is a crowd, and the pixels of a mask of the whole image."""
KINDS = ["--stuff", "sky", "road"]


def convert(*words: object) -> int:
    """The tool in this process, on one core."""
    return called("convert", *words, "--workers=1")


def called(name: str, *words: object) -> int:
    """A tool in this process: the code that it ends with, its message on the standard error."""
    try:
        run_alone(functools.partial(tool(name), [str(word) for word in words]), {})
    except SystemExit as ended:
        if not isinstance(ended.code, str):
            raise
        sys.stderr.write(f"{ended.code.strip()}\n")
        return 1
    return 0


def to(folder: Path, name: str = "back") -> list[str]:
    """Arguments that say where to write."""
    return ["--out", str(folder), "--name", name]


def result(out: Path, name: str = "back") -> dict[str, Any]:
    """The JSON that was written."""
    return json.loads((out / f"panoptic_{name}.json").read_text())


def masks_of(content: dict[str, Any], pngs: Path) -> dict[str, list[tuple[str, int, np.ndarray]]]:
    """Image -> class, crowd and mask of every segment."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found = {}
    for annotation in content["annotations"]:
        ids = rgb2id(np.array(Image.open(pngs / annotation["file_name"])))
        found[files[annotation["image_id"]]] = [
            (names[segment["category_id"]], segment["iscrowd"], ids == segment["id"])
            for segment in annotation["segments_info"]
        ]
    return found


def segments(
    content: dict[str, Any], pngs: Path, *, crowds: bool = True
) -> dict[str, set[Segment]]:
    """What is compared: image -> its segments, whatever their ids.

    Args:
        crowds: whether to tell them from single objects, which not every format does.
    """
    return {
        Path(image).stem: {
            (name, crowd * crowds, np.packbits(mask).tobytes()) for name, crowd, mask in found
        }
        for image, found in masks_of(content, pngs).items()
    }


def of_data(data: Written, **options: bool) -> dict[str, set[Segment]]:
    """The segments of the data that are taken apart."""
    return segments(data.read(), data.pngs, **options)


def of_output(out: Path, name: str = "back", **options: bool) -> dict[str, set[Segment]]:
    """The segments that were written."""
    return segments(result(out, name), out / f"panoptic_{name}", **options)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run lengths."""
    run_lengths = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": run_lengths["size"], "counts": run_lengths["counts"].decode()}


def counted(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, which begin with the pixels outside."""
    pixels = mask.T.reshape(-1).astype(np.int8)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], pixels]))).tolist()
    counts = np.diff([0, *ends, pixels.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def write_instances(data: Written, path: Path, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    """All segments (of some classes) in COCO's instance format: crowds as compressed run lengths,
    the second image as uncompressed ones, the rest as polygons."""
    content = data.read()
    ids = {category["name"]: category["id"] for category in content["categories"]}
    annotations: list[dict[str, Any]] = []
    for image in content["images"]:
        for name, crowd, mask in masks_of(content, data.pngs)[image["file_name"]]:
            if classes and name not in classes:
                continue
            shape: Any = mask_to_polygons(mask.astype(np.uint8))
            if crowd:
                shape = encoded(mask)
            elif image is content["images"][1]:
                shape = counted(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": ids[name],
                    "iscrowd": crowd,
                    "segmentation": shape,
                }
            )
    categories = [
        {key: category[key] for key in ("id", "name")} for category in content["categories"]
    ]
    written = {**content, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(written))
    return written


def write_labels(data: Written, folder: Path, values: dict[tuple[str, int], int]) -> None:
    """Label maps of 16 bits, with a value for each class and crowd; 0 elsewhere."""
    folder.mkdir()
    for image, found in masks_of(data.read(), data.pngs).items():
        labels = np.zeros(found[0][2].shape, dtype=np.uint16)
        for name, crowd, mask in found:
            labels[mask] = values.get((name, crowd), 0)
        Image.fromarray(labels).save(folder / f"{Path(image).stem}.png")
