"""A panoptic data set of one image of any size, be it a single row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image

from .panoptic_data import CATEGORIES, Written

DOG, SKY = 300, 5


def write_halves(folder: Path, height: int, width: int) -> Written:
    """A dog to the left of the sky, or above it, on noise."""
    written = Written(folder)
    written.images.mkdir(parents=True)
    written.pngs.mkdir()
    ids = np.full((height, width), SKY)
    ids[: (height + 1) // 2 if width == 1 else height, : (width + 1) // 2] = DOG
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(written.images / "0.png")
    Image.fromarray(id2rgb(ids)).save(written.pngs / "0.png")
    segments = [
        {"id": segment, "category_id": category, "iscrowd": 0}
        for segment, category in ((DOG, 1), (SKY, 12))
    ]
    written.write(
        {
            "images": [{"id": 1, "file_name": "0.png", "height": height, "width": width}],
            "annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": segments}],
            "categories": CATEGORIES,
        }
    )
    return written
