"""RoI features of a trained model, with the masks that a head is to find in them.

Shape shorthand: R regions of interest (RoIs), C channels, S the size of their features.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from torch import Tensor

from crbp_d2.analysis.runs import Run
from crbp_d2.core import ConfigurationError
from crbp_d2.data import PanopticMapper, ensure_prepared
from crbp_d2.data.storage import write_whole


@dataclass(frozen=True)
class RoIs:
    """What a mask head gets, and what it is to answer.

    Attributes:
        features: `(R, C, S, S)`.
        masks: `(R, 2S, 2S)` bool.
        classes: `(R,)`.
    """

    features: Tensor
    masks: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, chosen: Tensor) -> RoIs:
        """Some of them, by their indices."""
        return RoIs(self.features[chosen], self.masks[chosen], self.classes[chosen])


Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def cached_rois(
    run: Run,
    names: Sequence[str],
    *,
    jitter: float = 0.1,
    per_image: int = 20,
    seed: int = 0,
    progress: Progress = lambda records, _: records,
) -> RoIs:
    """`collect_rois`, read from the run's folder if that was done before.

    Args:
        run, names, jitter, per_image, seed: see `collect_rois`.
        progress: wraps the images as they are read; gets a title, too.
    """
    weights = Path(run.cfg.MODEL.WEIGHTS)
    settings = [*names, jitter, per_image, seed, str(weights), weights.stat().st_mtime_ns]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    path = run.folder / f"roi_features_{digest}.pt"
    if path.is_file():
        return RoIs(**torch.load(path, weights_only=True))
    found = collect_rois(
        run, names, jitter=jitter, per_image=per_image, seed=seed, progress=progress
    )
    content = io.BytesIO()
    torch.save(vars(found), content)
    write_whole(path, content.getvalue())
    return found


def collect_rois(
    run: Run,
    names: Sequence[str],
    *,
    jitter: float = 0.1,
    per_image: int = 20,
    seed: int = 0,
    progress: Progress = lambda records, _: records,
) -> RoIs:
    """The features of the true boxes of data sets, moved a little, as proposals are.

    Args:
        run: a model with Detectron2's `StandardROIHeads` and a mask head.
        names: registered data sets.
        jitter: each side of a box is moved by up to this fraction of its width or height.
        per_image: at most so many objects of an image, drawn at random.
        seed: of what is drawn.
        progress: see `cached_rois`.

    Raises:
        ConfigurationError: the model has no mask head, or the data no objects.
    """
    model, cfg = run.model, run.cfg
    if not hasattr(getattr(model, "roi_heads", None), "mask_pooler"):
        raise ConfigurationError(f"{run.label}: has no mask head on RoI features")
    random = torch.Generator().manual_seed(seed)
    mapper = PanopticMapper(_plain(cfg), is_train=True)
    parts: dict[str, list[Tensor]] = {"features": [], "masks": [], "classes": []}
    for name in names:
        ensure_prepared(name)
        for record in progress(DatasetCatalog.get(name), name):
            mapped = mapper(record)
            truth: Instances = mapped["instances"]
            chosen = torch.randperm(len(truth), generator=random)[:per_image]
            if not len(chosen):
                continue
            truth = truth[chosen]
            boxes = _moved(truth.gt_boxes, truth.image_size, jitter, random)
            features = _pooled(model, mapped, boxes)
            side = 2 * features.shape[-1]
            parts["features"].append(features.cpu())
            parts["masks"].append(truth.gt_masks.crop_and_resize(boxes.tensor, side).cpu())
            parts["classes"].append(truth.gt_classes)
    if not parts["classes"]:
        raise ConfigurationError(f"{', '.join(names)}: there is no object in the images")
    return RoIs(**{name: torch.cat(values) for name, values in parts.items()})


def _plain(cfg: CfgNode) -> CfgNode:
    """The config with images as they are tested, and their annotations."""
    plain = cfg.clone()
    plain.defrost()
    plain.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    plain.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    plain.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    plain.INPUT.RANDOM_FLIP = "none"
    plain.INPUT.CROP.ENABLED = False
    return plain


def _moved(boxes: Boxes, size: tuple[int, int], jitter: float, random: torch.Generator) -> Boxes:
    corners = boxes.tensor
    extent = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    shift = jitter * (2 * torch.rand(corners.shape, generator=random) - 1)
    moved = Boxes(corners + shift * extent)
    moved.clip(size)
    return moved


def _pooled(model: Any, mapped: dict[str, Any], boxes: Boxes) -> Tensor:
    heads = model.roi_heads
    with torch.no_grad():
        images = model.preprocess_image([{"image": mapped["image"]}])
        found = model.backbone(images.tensor)
        pooled: Tensor = heads.mask_pooler(
            [found[name] for name in heads.mask_in_features], [boxes.to(model.device)]
        )
    return pooled
