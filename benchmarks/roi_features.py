"""RoI features of a trained model, with the masks that a head is to find in them.

Shape shorthand: R regions of interest (RoIs), C channels, S the size of their features, N objects
of an image of H x W pixels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kept import kept, require_tensors
from crbp_d2.analysis.runs import Run
from crbp_d2.analysis.true_boxes import true_mapper
from crbp_d2.core import ConfigurationError
from crbp_d2.data import ensure_prepared
from crbp_d2.weights import UnreadableError

TOUCHING = 2
"""Pixels of the image between objects that touch, at most."""


@dataclass(frozen=True)
class RoIs:
    """What a mask head gets, and what it is to answer.

    Attributes:
        features: `(R, C, S, S)`.
        masks: `(R, 2S, 2S)` bool.
        classes: `(R,)`.
        touching: `(R,)` bool, whether another object is within `TOUCHING` pixels.
        elongation: `(R,)`, see `elongation_of`.
    """

    features: Tensor
    masks: Tensor
    classes: Tensor
    touching: Tensor
    elongation: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, chosen: Tensor) -> RoIs:
        """Some of them, by their indices."""
        return RoIs(**{name: value[chosen] for name, value in vars(self).items()})

    def digest(self) -> str:
        """Tells them from other RoIs."""
        found = hashlib.sha256()
        for value in vars(self).values():
            found.update(value.contiguous().numpy().data)
        return found.hexdigest()


@dataclass(frozen=True)
class Collection:
    """How RoIs are taken of images.

    Attributes:
        jitter: each side of a true box is moved by up to this fraction of its width or height, as
            proposals are.
        per_image: at most so many objects of an image, drawn at random.
        resolution: `S`; `None` for that of the model.
        noise: standard deviation of Gaussian noise on the image, of 255.
        seed: of what is drawn.
    """

    jitter: float = 0.1
    per_image: int = 20
    resolution: int | None = None
    noise: float = 0.0
    seed: int = 0


Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def cached_rois(
    run: Run,
    names: Sequence[str],
    how: Collection,
    *,
    progress: Progress = lambda records, _: records,
) -> RoIs:
    """`collect_rois`, read from the run's folder if that was done before.

    Args:
        run, names, how: see `collect_rois`.
        progress: wraps the images as they are read; gets a title, too.
    """
    settings = [
        *names,
        asdict(how),
        # What can change what the model sees of an image.
        run.cfg.INPUT.dump(),
        run.cfg.MODEL.dump(),
        Path(run.cfg.MODEL.WEIGHTS).stat().st_mtime_ns,
    ]

    def collect() -> dict[str, Any]:
        return {"model": vars(collect_rois(run, names, how, progress=progress))}

    require = partial(_require_rois, run, how)
    return RoIs(**kept(run.folder, "roi_features", settings, collect, require)["model"])


def _require_rois(run: Run, how: Collection, found: dict[str, Any]) -> None:
    """Refuse what `collect_rois` would not return for a model.

    Raises:
        UnreadableError: naming what is wrong.
    """
    stored, model = found["model"], run.model
    classes = stored.get("classes")
    count = len(classes) if isinstance(classes, Tensor) and classes.dim() else 0
    size = how.resolution or _pooler_of(run).output_size[0]
    channels = model.backbone.output_shape()[model.roi_heads.mask_in_features[0]].channels
    forms = {
        "features": (torch.float32, (count, channels, size, size)),
        "masks": (torch.bool, (count, 2 * size, 2 * size)),
        "classes": (torch.int64, (count,)),
        "touching": (torch.bool, (count,)),
        "elongation": (torch.float32, (count,)),
    }
    require_tensors(stored, forms)
    most = run.cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not count or not bool(((stored["classes"] >= 0) & (stored["classes"] < most)).all()):
        raise UnreadableError(f"classes must be numbers below {most}, and at least one")


def collect_rois(
    run: Run,
    names: Sequence[str],
    how: Collection,
    *,
    progress: Progress = lambda records, _: records,
) -> RoIs:
    """The features of true boxes of data sets.

    Args:
        run: a model with Detectron2's `StandardROIHeads` and a mask head.
        names: registered data sets.
        how: see `Collection`.
        progress: see `cached_rois`.

    Raises:
        ConfigurationError: the model has no mask head, or the data no objects.
    """
    model = run.model
    pooler = copy.deepcopy(_pooler_of(run))
    if how.resolution is not None:
        for level in (pooler, *pooler.level_poolers):
            level.output_size = (how.resolution, how.resolution)
    random = torch.Generator().manual_seed(how.seed)
    # Of its own: the objects of noisy images are those of clean ones.
    random_noise = torch.Generator().manual_seed(how.seed)
    mapper = true_mapper(run.cfg)
    parts: list[RoIs] = []
    for name in names:
        ensure_prepared(name)
        for record in progress(DatasetCatalog.get(name), name):
            mapped = mapper(record)
            truth: Instances = mapped["instances"]
            chosen = torch.randperm(len(truth), generator=random)[: how.per_image]
            if not len(chosen):
                continue
            whole = _whole_masks(truth)
            boxes = _moved(truth.gt_boxes[chosen], truth.image_size, how.jitter, random)
            image = mapped["image"].float()
            if how.noise:
                image = image + how.noise * torch.randn(image.shape, generator=random_noise)
            features = _pooled(model, pooler, image.clamp(0, 255), boxes)
            masks = truth.gt_masks[chosen].crop_and_resize(boxes.tensor, 2 * features.shape[-1])
            parts.append(
                RoIs(
                    features=features.cpu(),
                    masks=masks.cpu(),
                    classes=truth.gt_classes[chosen],
                    touching=touching(whole)[chosen],
                    elongation=elongation_of(whole)[chosen],
                )
            )
    if not parts:
        raise ConfigurationError(f"{', '.join(names)}: there is no object in the images")
    return RoIs(
        **{name: torch.cat([getattr(one, name) for one in parts]) for name in vars(parts[0])}
    )


def _pooler_of(run: Run) -> Any:
    if not hasattr(getattr(run.model, "roi_heads", None), "mask_pooler"):
        raise ConfigurationError(f"{run.label}: has no mask head on RoI features")
    return run.model.roi_heads.mask_pooler


def _whole_masks(truth: Instances) -> Tensor:
    """`(N, H, W)` bool."""
    masks = truth.gt_masks
    if not isinstance(masks, BitMasks):
        masks = BitMasks.from_polygon_masks(masks, *truth.image_size)
    found: Tensor = masks.tensor
    return found


def touching(masks: Tensor) -> Tensor:
    """Which objects have another one within `TOUCHING` pixels, `(N,)` bool, of masks `(N, H, W)`
    bool."""
    objects = masks.float()
    size = 2 * TOUCHING + 1
    wider = F.max_pool2d(objects[:, None], size, stride=1, padding=TOUCHING)[:, 0] > 0
    covered = masks.sum(dim=0)
    return ((covered - masks.int() > 0) & wider).flatten(1).any(dim=1)


def elongation_of(masks: Tensor) -> Tensor:
    """Length by width of the ellipses that have the second moments of masks, `(N,)`, at least 1.

    Args:
        masks: `(N, H, W)` bool.
    """
    found = []
    for mask in masks:
        places = mask.nonzero().float()
        if not len(places):
            found.append(torch.tensor(1.0))
            continue
        centred = places - places.mean(dim=0)
        # A pixel has an extent of its own.
        moments = centred.T @ centred / len(places) + torch.eye(2) / 12
        narrow, long = torch.linalg.eigvalsh(moments)
        found.append((long / narrow).sqrt())
    return torch.stack(found)


def _moved(boxes: Boxes, size: tuple[int, int], jitter: float, random: torch.Generator) -> Boxes:
    corners = boxes.tensor
    extent = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    shift = jitter * (2 * torch.rand(corners.shape, generator=random) - 1)
    moved = Boxes(corners + shift * extent)
    moved.clip(size)
    return moved


def _pooled(model: Any, pooler: Any, image: Tensor, boxes: Boxes) -> Tensor:
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}])
        found = model.backbone(images.tensor)
        names = model.roi_heads.mask_in_features
        pooled: Tensor = pooler([found[name] for name in names], [boxes.to(model.device)])
    return pooled
