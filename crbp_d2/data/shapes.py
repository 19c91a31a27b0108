"""The embedded data set "shapes": 400 + 100 scenes, made where it is first used."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.progress import tqdm

from .categories import class_metadata
from .fields import Json
from .files import absolute, naming, save_image
from .panoptic import add_to_catalog
from .parallel import ordered_map
from .record import all_whole, read_record, sizes_below, write_record
from .shapes_scene import ShapesConfig, draw_scene, shapes_categories
from .source import PanopticSource
from .storage import locked, replacing, writable_or_cached
from .validate import DatasetError

logger = logging.getLogger(__name__)

# Split -> number of scenes and seed.
SPLITS = {"train": (400, 0), "val": (100, 1)}
MOST_SCENES = 1_000_000
"""In a folder, whose names have six digits."""
_JPEG_QUALITY = 95
_RECORD = ".crbp_d2_shapes.json"


def shapes_root() -> Path:
    """`$DETECTRON2_DATASETS/shapes`, where the variable is "datasets" by default.

    In the user's cache folder if that can't be written.

    Raises:
        DatasetError: no folder can be called so.
    """
    root = absolute(os.environ.get("DETECTRON2_DATASETS") or "datasets")
    return writable_or_cached(root / "shapes", "shapes")


def make_shapes(
    folder: Path,
    *,
    scenes: int,
    seed: int,
    config: ShapesConfig | None = None,
    workers: int | None = None,
) -> None:
    """Writes `folder` with `images/*.jpg`, `panoptic/*.png` and `panoptic.json`, all or nothing.

    Does nothing if the folder exists; but where it was written here and a file of it is missing or
    cut, all are drawn anew. The same arguments give the same bytes, whatever the number
    of workers.

    Args:
        folder: of one split.
        scenes: number of images, from 1 to `MOST_SCENES`.
        seed: any number at least 0; splits need different ones.
        config: what the scenes are like.
        workers: number of processes; see `ordered_map`.

    Raises:
        ValueError: `scenes` or `seed` is out of range.
    """
    if not 1 <= scenes <= MOST_SCENES or seed < 0:
        raise ValueError(
            f"scenes={scenes}, seed={seed}: from 1 to {MOST_SCENES} scenes and a seed of at least 0"
        )
    config = config or ShapesConfig()
    if _is_there(folder):
        return
    with locked(folder):
        if _is_there(folder):
            return
        logger.info("Drawing %d scenes into %s", scenes, folder)
        with replacing(folder) as fresh:
            (fresh / "images").mkdir()
            (fresh / "panoptic").mkdir()
            write = functools.partial(_write_scene, fresh, seed, config)
            annotations = ordered_map(write, range(scenes), workers=workers)
            bar = tqdm(annotations, folder.name, scenes, unit="scene", disable=None)
            content = {
                "info": {"description": "shapes", "seed": seed, **asdict(config)},
                "images": [_image_entry(index, config) for index in range(scenes)],
                "annotations": list(bar),
                "categories": shapes_categories(),
            }
            path = fresh / "panoptic.json"
            with naming(path):
                path.write_text(json.dumps(content), encoding="utf-8")
            write_record(fresh / _RECORD, {"sizes": sizes_below(fresh)})


def _is_there(folder: Path) -> bool:
    # Without a record it may be anybody's: what is in it isn't replaced.
    if not os.path.lexists(folder / _RECORD):
        return os.path.lexists(folder)
    record = read_record(folder / _RECORD)
    return record is not None and all_whole(folder, record["sizes"])


def _image_entry(index: int, config: ShapesConfig) -> Json:
    name = f"{index:06d}.jpg"
    return {"id": index, "file_name": name, "width": config.size, "height": config.size}


def _write_scene(folder: Path, seed: int, config: ShapesConfig, index: int) -> Json:
    scene = draw_scene(index, seed=seed, config=config)
    name = f"{index:06d}"
    image, ids = Image.fromarray(scene.image), Image.fromarray(id2rgb(scene.ids))
    save_image(image, folder / "images" / f"{name}.jpg", "JPEG", quality=_JPEG_QUALITY)
    save_image(ids, folder / "panoptic" / f"{name}.png", "PNG")
    segments = []
    for value, category in scene.segments.items():
        mask = (scene.ids == value).astype(np.uint8)
        segments.append(
            {
                "id": value,
                "category_id": category,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": list(cv2.boundingRect(mask)),
            }
        )
    return {"image_id": index, "file_name": f"{name}.png", "segments_info": segments}


def register_shapes(root: Path, splits: Mapping[str, tuple[int, int]] = SPLITS) -> None:
    """Registers `shapes_<split>` in `root` for each split, without making them.

    Args:
        splits: name of a split -> number of scenes and seed.
    """
    classes = class_metadata(shapes_categories())
    for split, (scenes, seed) in splits.items():
        folder = root / split
        source = PanopticSource.locate(
            images=folder / "images",
            panoptic_json=folder / "panoptic.json",
            panoptic_pngs=folder / "panoptic",
        )
        make = functools.partial(make_shapes, folder, scenes=scenes, seed=seed)
        add_to_catalog(f"shapes_{split}", source, classes, make)


try:
    register_shapes(shapes_root())
except DatasetError as error:
    # Whoever uses other data can do without.
    logger.warning("shapes_train and shapes_val are not there: $DETECTRON2_DATASETS: %s", error)
