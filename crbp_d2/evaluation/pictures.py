"""Predictions as pictures: image, prediction and ground truth side by side."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import PanopticFPN
from detectron2.utils.events import EventStorage
from panopticapi.utils import rgb2id
from PIL import Image
from torch import nn

from crbp_d2.data.files import save_image
from crbp_d2.data.loaders import build_test_loader, is_pathfinder
from crbp_d2.evaluation.colours import ObjectColours
from crbp_d2.evaluation.drawing import (
    LONGEST_SIDE,
    MINIMUM_SIDE,
    Panel,
    Pixels,
    draw_segments,
    drawn_size,
    scaled,
    side_by_side,
)
from crbp_d2.progress import tqdm

Record = dict[str, Any]

SHOWN_SIDE = 3 * LONGEST_SIDE // 2
"""No picture in TensorBoard is longer: an event file keeps those of every evaluation."""

logger = logging.getLogger(__name__)


def draw_predictions(
    cfg: CfgNode, model: nn.Module, storage: EventStorage | None = None
) -> list[Path]:
    """Draw `cfg.TEST.PICTURES` predictions for the first test set to `OUTPUT_DIR/predictions`.

    Args:
        cfg: frozen or not.
        model: may be distributed; the process that draws needs no other.
        storage: see `write_pictures`.

    Returns:
        The files, none without pictures or test data.
    """
    if not cfg.TEST.PICTURES or not cfg.DATASETS.TEST:
        return []
    bare = getattr(model, "module", model)
    folder = Path(cfg.OUTPUT_DIR) / "predictions"
    return write_pictures(cfg, bare, cfg.DATASETS.TEST[0], folder, storage)


def write_pictures(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    folder: Path,
    storage: EventStorage | None = None,
) -> list[Path]:
    """Draw the predictions for the first `cfg.TEST.PICTURES` images of a data set.

    Each picture shows the image, the model's prediction and the ground truth; of panoptic data the
    segments (see `answer_as_drawn`), of Pathfinder images the probability of a contour. Images of
    the same name get numbers.

    Args:
        cfg: its test-time settings make the model's input.
        model: a model of that kind, not distributed; its mode is restored.
        dataset_name: a registered data set; of other kinds nothing is drawn.
        folder: for `<image>.png`; made if missing.
        storage: of a training, gets the pictures as `predictions/<image>`, reduced to `SHOWN_SIDE`,
            and hands them to TensorBoard.

    Returns:
        The files.
    """
    metadata = MetadataCatalog.get(dataset_name)
    draw: Callable[[Record, Record], list[Panel]]
    if is_pathfinder(dataset_name):
        draw = contour_panels
    elif metadata.get("evaluator_type") == "coco_panoptic_seg":
        annotations = json.loads(Path(metadata.panoptic_json).read_text(encoding="utf-8"))[
            "annotations"
        ]
        truths = {annotation["image_id"]: annotation for annotation in annotations}
        draw = functools.partial(panoptic_panels, metadata=metadata, truths=truths)
    else:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    loader = build_test_loader(cfg, dataset_name, num_workers=0, batch_size=1)
    was_training = model.training
    model.eval()
    written: list[Path] = []
    names: set[str] = set()
    try:
        total = min(cfg.TEST.PICTURES, len(loader))
        for (record,), _ in tqdm(zip(loader, range(total), strict=False), "pictures", total=total):
            panels = draw(record, answer_as_drawn(model, record))
            name, picture = unused(image_name(record), names), side_by_side(panels)
            path = folder / f"{name}.png"
            save_image(Image.fromarray(picture), path, "PNG")
            written.append(path)
            if storage is not None:
                storage.put_image(f"predictions/{name}", _reduced(picture).transpose(2, 0, 1))
    finally:
        model.train(was_training)
    logger.info("drew %d predictions (image, prediction, ground truth) to %s", len(written), folder)
    return written


def _reduced(picture: Pixels) -> Pixels:
    """A picture no longer than `SHOWN_SIDE`."""
    return scaled(picture, SHOWN_SIDE) if max(picture.shape) > SHOWN_SIDE else picture


def answer_as_drawn(model: Any, record: Record, longest: int | None = None) -> Record:
    """What a model answers to an image; to one that is drawn smaller than it is, in that size.

    Masks of dozens of objects at the size of a large image would take gigabytes, to be reduced
    then. What the model counts in pixels, the least area of stuff, is reduced with the image.

    Args:
        model: in evaluation mode.
        record: what it takes; `height` and `width` are those of the image.
        longest: side of what is drawn, `LONGEST_SIDE` by default.
    """
    longest = longest or LONGEST_SIDE
    if not isinstance(model, PanopticFPN) or max(record["height"], record["width"]) <= longest:
        with torch.no_grad():
            return model([record])[0]
    height, width = drawn_size(record["height"], record["width"], longest)
    least = model.combine_stuff_area_thresh
    part = height * width / (record["height"] * record["width"])
    model.combine_stuff_area_thresh = least * part
    try:
        with torch.no_grad():
            return model([{**record, "height": height, "width": width}])[0]
    finally:
        model.combine_stuff_area_thresh = least


def panoptic_panels(
    record: Record, output: Record, *, metadata: Any, truths: dict[Any, Record]
) -> list[Panel]:
    """Image, predicted and true segments.

    Args:
        record: of a panoptic data set.
        output: of a panoptic model, with `panoptic_seg`.
        metadata: of the data set.
        truths: image id -> annotation of the panoptic JSON.
    """
    image = read_image(record["file_name"], "RGB")
    colours = ObjectColours(metadata)
    truth = ground_truth(truths[record["image_id"]], metadata)
    true = draw_segments(image, *truth, metadata, colours)
    segments, infos = output["panoptic_seg"]
    predicted = draw_segments(image, segments.cpu().numpy(), infos, metadata, colours)
    return [("image", scaled(image)), ("prediction", predicted), ("ground truth", true)]


def contour_panels(record: Record, output: Record) -> list[Panel]:
    """Image, probability of a contour and mask, enlarged by a whole factor where they are small.

    Args:
        record: a mapped Pathfinder image, with `image` and `sem_seg`.
        output: with the logits `sem_seg` `(2, H, W)`.
    """
    probability = output["sem_seg"].softmax(dim=0)[1].cpu().numpy()
    panels = {
        "image": record["image"][0].numpy(),
        "probability of a contour": 255 * probability,
        "ground truth": 255 * record["sem_seg"].numpy(),
    }
    return [(title, _enlarged_pixels(panel.astype(np.uint8))) for title, panel in panels.items()]


def _enlarged_pixels(grey: Pixels) -> Pixels:
    """A grey image `(H, W)` as RGB, reduced if it is large, else enlarged in whole pixels."""
    if max(grey.shape) > LONGEST_SIDE:
        grey = scaled(grey)
    factor = min(round(MINIMUM_SIDE / min(grey.shape)), LONGEST_SIDE // max(grey.shape))
    grey = grey.repeat(max(1, factor), axis=0).repeat(max(1, factor), axis=1)
    return np.repeat(grey[..., None], 3, axis=2)


def image_name(record: Record) -> str:
    """What pictures of an image are called: its file without ending, or its id."""
    if "file_name" in record:
        return Path(record["file_name"]).stem
    image_id = record["image_id"]
    return f"{image_id:06d}" if isinstance(image_id, Integral) else str(image_id)


def unused(name: str, taken: set[str]) -> str:
    """A name, with a number where it is taken; it is taken then. Case makes no difference, as for
    some file systems."""
    free, number = name, 2
    while free.casefold() in taken:
        free, number = f"{name}_{number}", number + 1
    taken.add(free.casefold())
    return free


def ground_truth(
    annotation: dict[str, Any], metadata: Any
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids and their infos, in a model's form, from a panoptic annotation.

    Returns:
        Ids `(H, W)`, of the image's size; of a large one the size at which it is drawn. Infos with
        `id`, `isthing`, `iscrowd` and contiguous `category_id`.
    """
    path = Path(metadata.panoptic_root) / annotation["file_name"]
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    height, width = drawn_size(picture.height, picture.width)
    if width < picture.width or height < picture.height:
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    infos = [
        {
            "id": segment["id"],
            "isthing": segment["category_id"] in things,
            "iscrowd": bool(segment.get("iscrowd", 0)),
            "category_id": {**stuff, **things}[segment["category_id"]],
        }
        for segment in annotation["segments_info"]
    ]
    return rgb2id(np.asarray(picture)).astype(np.int32), infos
