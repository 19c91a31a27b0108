"""Tiny panoptic data sets for tests: three images of 40 x 60 pixels, things and stuff."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from crbp_d2.data.outlines import mask_to_polygons

CATEGORIES = [
    {"id": 3, "name": "cup", "isthing": 1, "color": [10, 20, 30]},
    {"id": 1, "name": "dog", "isthing": 1, "color": [40, 50, 60]},
    {"id": 12, "name": "sky", "isthing": 0, "color": [70, 80, 90]},
    {"id": 7, "name": "road", "isthing": 0, "color": [90, 80, 70]},
]
HEIGHT, WIDTH = 40, 60
DOG, CUP, CROWD, SKY, ROAD = 1000, 70000, 9, 5, 256**3 - 1


@dataclass
class Written:
    """Where a data set was written."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def pngs(self) -> Path:
        return self.folder / "pngs"

    @property
    def json(self) -> Path:
        return self.folder / "panoptic.json"

    def arguments(self) -> dict[str, Path]:
        """For `register_panoptic` and `PanopticSource.locate`."""
        return {
            "images": self.images,
            "panoptic_json": self.json,
            "panoptic_pngs": self.pngs,
        }

    def read(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())

    def write(self, content: Any) -> None:
        self.json.write_text(json.dumps(content))


def segment_ids() -> np.ndarray:
    """Sky above road, a strip unlabelled; a dog with a hole, a cup before it, a crowd of cups."""
    ids = np.full((HEIGHT, WIDTH), SKY)
    ids[20:] = ROAD
    ids[:, 55:] = 0
    ids[10:30, 5:25] = DOG
    ids[15:20, 10:15] = SKY
    ids[25:35, 20:28] = CUP
    ids[2:8, 35:50] = CROWD
    return ids


def instances_of(data: Written) -> dict[str, Any]:
    """COCO's instance format of the things: polygons, run lengths of the crowd."""
    content = data.read()
    things = [category for category in content["categories"] if category["isthing"]]
    ids = {category["id"] for category in things}
    annotations: list[dict[str, Any]] = []
    for entry in content["annotations"]:
        pixels = rgb2id(np.array(Image.open(data.pngs / entry["file_name"])))
        for segment in entry["segments_info"]:
            if segment["category_id"] not in ids:
                continue
            mask = (pixels == segment["id"]).astype(np.uint8)
            encoded = mask_util.encode(np.asfortranarray(mask))
            crowd = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": entry["image_id"],
                    "category_id": segment["category_id"],
                    "iscrowd": segment["iscrowd"],
                    "area": int(mask.sum()),
                    "bbox": mask_util.toBbox(encoded).tolist(),
                    "segmentation": crowd if segment["iscrowd"] else mask_to_polygons(mask),
                }
            )
    return {"images": content["images"], "annotations": annotations, "categories": things}


def write_panoptic(folder: Path, *, things: bool = True, stuff: bool = True) -> Written:
    """Writes three images that differ in position; the JSON's areas are wrong on purpose."""
    written = Written(folder)
    written.images.mkdir(parents=True)
    written.pngs.mkdir()
    category_of = {DOG: 1, CUP: 3, CROWD: 3, SKY: 12, ROAD: 7}
    kept = {category["id"] for category in CATEGORIES if (things, stuff)[1 - category["isthing"]]}
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [category for category in CATEGORIES if category["id"] in kept],
    }
    for number in range(3):
        ids = np.roll(segment_ids(), 3 * number, axis=1)
        present = [value for value in category_of if category_of[value] in kept]
        ids[~np.isin(ids, present)] = 0
        pixels = ids[..., None] * [3, 7, 11] % 200 + rng.integers(0, 50, (HEIGHT, WIDTH, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(written.images / f"{number}.jpg")
        Image.fromarray(id2rgb(ids)).save(written.pngs / f"{number}.png")
        content["images"].append(
            {"id": 10 + number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
        )
        segments = [
            {
                "id": value,
                "category_id": category_of[value],
                "iscrowd": int(value == CROWD),
                "area": 1,
                "bbox": [0, 0, 1, 1],
            }
            for value in present
        ]
        content["annotations"].append(
            {"image_id": 10 + number, "file_name": f"{number}.png", "segments_info": segments}
        )
    written.write(content)
    return written
