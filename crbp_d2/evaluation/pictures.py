"""Predictions as pictures: image, prediction and ground truth side by side."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer
from panopticapi.utils import rgb2id
from PIL import Image
from torch import nn
from tqdm import tqdm

from crbp_d2.data.loaders import build_test_loader, is_pathfinder

Record = dict[str, Any]

logger = logging.getLogger(__name__)

MINIMUM_SIDE = 384
"""Smaller images are enlarged, so that the labels drawn on them can be read."""


def write_pictures(cfg: CfgNode, model: nn.Module, dataset_name: str, folder: Path) -> list[Path]:
    """Draw the predictions for the first `cfg.CRBP.PICTURES` images of a data set.

    Each picture shows the image, the model's prediction and the ground truth; of panoptic data the
    segments, of Pathfinder images the probability of a contour.

    Args:
        cfg: its test-time settings make the model's input.
        model: a model of that kind, not distributed; its mode is restored.
        dataset_name: a registered data set; of other kinds nothing is drawn.
        folder: for `<image>.png`; made if missing.

    Returns:
        The files.
    """
    metadata = MetadataCatalog.get(dataset_name)
    draw: Callable[[Record, Record], list[np.ndarray]]
    if is_pathfinder(dataset_name):
        draw = contour_panels
    elif metadata.get("evaluator_type") == "coco_panoptic_seg":
        annotations = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
        truths = {annotation["image_id"]: annotation for annotation in annotations}
        draw = functools.partial(panoptic_panels, metadata=metadata, truths=truths)
    else:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    loader = build_test_loader(cfg, dataset_name, num_workers=0)
    was_training = model.training
    model.eval()
    written = []
    try:
        total = min(cfg.CRBP.PICTURES, len(loader))
        for (record,), _ in tqdm(zip(loader, range(total), strict=False), "pictures", total=total):
            with torch.no_grad():
                panels = draw(record, model([record])[0])
            name = Path(record.get("file_name", f"{record['image_id']:06d}")).stem
            path = folder / f"{name}.png"
            Image.fromarray(np.concatenate(panels, axis=1)).save(path)
            written.append(path)
    finally:
        model.train(was_training)
    logger.info("drew %d predictions (image, prediction, ground truth) to %s", len(written), folder)
    return written


def panoptic_panels(
    record: Record, output: Record, *, metadata: Any, truths: dict[Any, Record]
) -> list[np.ndarray]:
    """Image, predicted and true segments, each `(H, W, 3)` RGB uint8.

    Args:
        record: of a panoptic data set.
        output: of a panoptic model, with `panoptic_seg`.
        metadata: of the data set.
        truths: image id -> annotation of the panoptic JSON.
    """
    image = read_image(record["file_name"], "RGB")
    segments, infos = output["panoptic_seg"]
    truth = ground_truth(truths[record["image_id"]], metadata)
    return [
        enlarged(image),
        draw_panoptic(image, segments.cpu().numpy(), infos, metadata),
        draw_panoptic(image, *truth, metadata),
    ]


def contour_panels(record: Record, output: Record) -> list[np.ndarray]:
    """Image, probability of a contour and mask, each `(H, W, 3)` uint8, enlarged.

    Args:
        record: a mapped Pathfinder image, with `image` and `sem_seg`.
        output: with the logits `sem_seg` `(2, H, W)`.
    """
    probability = output["sem_seg"].softmax(dim=0)[1].cpu().numpy()
    panels = [record["image"][0].numpy(), 255 * probability, 255 * record["sem_seg"].numpy()]
    factor = max(1, round(MINIMUM_SIDE / len(probability)))
    return [
        np.repeat(np.repeat(np.repeat(panel[..., None], 3, 2), factor, 0), factor, 1).astype(
            np.uint8
        )
        for panel in panels
    ]


def draw_panoptic(
    image: np.ndarray, segments: np.ndarray, infos: list[dict[str, Any]] | None, metadata: Any
) -> np.ndarray:
    """The image with its segments drawn over it.

    Args:
        image: `(H, W, 3)` RGB, uint8.
        segments: `(H, W)` segment ids, 0 where there is none.
        infos: per segment `id`, `isthing` and contiguous `category_id`.
        metadata: of the data set, with class names.

    Returns:
        RGB uint8, enlarged to at least `MINIMUM_SIDE`.
    """
    large = enlarged(image)
    size = large.shape[1::-1]
    map_ = cv2.resize(segments.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    visualizer = Visualizer(large, metadata)
    drawn = visualizer.draw_panoptic_seg(torch.from_numpy(map_), infos or [])
    return drawn.get_image()


def ground_truth(
    annotation: dict[str, Any], metadata: Any
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids `(H, W)` and their infos, in a model's form, from a panoptic annotation."""
    path = Path(metadata.panoptic_root) / annotation["file_name"]
    segments = rgb2id(np.asarray(Image.open(path).convert("RGB")))
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    infos = [
        {
            "id": segment["id"],
            "isthing": segment["category_id"] in things,
            "category_id": {**stuff, **things}[segment["category_id"]],
        }
        for segment in annotation["segments_info"]
    ]
    return segments.astype(np.int32), infos


def enlarged(image: np.ndarray) -> np.ndarray:
    """The image, scaled up to a shorter side of `MINIMUM_SIDE` if it is smaller."""
    factor = MINIMUM_SIDE / min(image.shape[:2])
    if factor <= 1:
        return image
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
