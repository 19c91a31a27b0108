"""Panoptic images of mixed sizes and shapes, as real ones are: none square, none 128 pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.data import register_panoptic

from .panoptic_data import CATEGORIES, Written

SIZES = ((96, 61), (57, 140), (200, 120), (48, 75))
"""Height and width of the images."""
DOG, CUP, SKY, ROAD = 300, 70000, 5, 8
_CATEGORY_OF = {DOG: 1, CUP: 3, SKY: 12, ROAD: 7}


def write_mixed(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Written:
    """One image a size: sky above road, a dog and a cup at fractions of its height and width."""
    written = Written(folder)
    written.images.mkdir(parents=True)
    written.pngs.mkdir()
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, (height, width) in enumerate(sizes):
        ids = np.full((height, width), SKY)
        ids[height // 2 :] = ROAD
        ids[height // 4 : height * 3 // 4, width // 8 : width // 2] = DOG
        ids[height // 2 : height * 7 // 8, width * 5 // 8 : width * 7 // 8] = CUP
        pixels = ids[..., None] * [3, 7, 11] % 200 + rng.integers(0, 50, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(written.images / f"{number}.png")
        Image.fromarray(id2rgb(ids)).save(written.pngs / f"{number}.png")
        content["images"].append(
            {"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width}
        )
        segments = [
            {"id": segment, "category_id": category, "iscrowd": 0}
            for segment, category in _CATEGORY_OF.items()
        ]
        content["annotations"].append(
            {"image_id": number + 1, "file_name": f"{number}.png", "segments_info": segments}
        )
    written.write(content)
    return written


@contextmanager
def registered(name: str, arguments: dict[str, Any]) -> Iterator[str]:
    """`register_panoptic(name, **arguments)` within the block."""
    register_panoptic(name, **arguments)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
