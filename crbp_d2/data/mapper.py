"""Detectron2's mapper, where it would lose pixels without a word, or fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data.transforms import RandomCrop
from fvcore.transforms.transform import CropTransform

from crbp_d2.core import ConfigurationError

from .derive import UNLABELLED
from .fields import Json
from .outlines import mask_to_polygons
from .reading import require_eight_bits

_RELATIVE, _ABSOLUTE = ("relative", "relative_range"), ("absolute", "absolute_range")


class PixelCrop(CropTransform):
    """A crop after which polygons cover the pixels that they covered before.

    fvcore's own one fills holes, and needs shapely.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Polygons `(N, 2)` of one object, of which the union counts."""
        right, bottom = self.x0 + self.w, self.y0 + self.h
        flat = [np.asarray(polygon, dtype=np.float64).reshape(-1).tolist() for polygon in polygons]
        encoded = mask_util.merge(mask_util.frPyObjects(flat, bottom, right))
        mask = mask_util.decode(encoded)[self.y0 :, self.x0 :]
        if not mask.any():
            return []
        return [np.array(polygon).reshape(-1, 2) for polygon in mask_to_polygons(mask)]


class RandomPixelCrop(RandomCrop):
    """Detectron2's random crop as a `PixelCrop`, with a labelled pixel at least.

    Without any, the mean of the semantic loss would be one of no pixels, which is NaN.
    """

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None = None) -> PixelCrop:
        """Args: `image` `(H, W, C)`, and `sem_seg` `(H, W)` with 255 where nothing is labelled."""
        crop = super().get_transform(image)
        x0, y0 = crop.x0, crop.y0
        if sem_seg is not None and (crop.apply_segmentation(sem_seg) == UNLABELLED).all():
            rows, columns = np.nonzero(sem_seg != UNLABELLED)
            if len(rows):
                chosen = np.random.randint(len(rows))
                y0 = _moved(y0, crop.h, rows[chosen])
                x0 = _moved(x0, crop.w, columns[chosen])
        return PixelCrop(x0, y0, crop.w, crop.h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


def _moved(start: int, length: int, inside: int) -> int:
    """The start of the nearest window of that length that has `inside` in it."""
    return int(np.clip(start, inside - length + 1, inside))


class PanopticMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, for panoptic data and others.

    Differences: an image that eight bits don't hold is an error; `INPUT.CROP` keeps the holes of
    masks in either `INPUT.MASK_FORMAT`, needs no shapely, and takes images without instances.

    Args:
        is_train: see `DatasetMapper`.
        fit_boxes: whether boxes are those of the masks, as they must be after a crop.
        options: of `DatasetMapper`.
    """

    @configurable
    def __init__(self, is_train: bool, *, fit_boxes: bool = False, **options: Any) -> None:
        super().__init__(is_train, **options)
        self.fit_boxes = fit_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        if is_train and cfg.INPUT.CROP.ENABLED:
            _check_crop(cfg.INPUT.CROP)
        options: dict[str, Any] = super().from_config(cfg, is_train)
        options["augmentations"] = [
            RandomPixelCrop(one.crop_type, one.crop_size) if type(one) is RandomCrop else one
            for one in options["augmentations"]
        ]
        # Detectron2 fails to do so where there is no mask.
        options["fit_boxes"] = options.pop("recompute_boxes")
        return options

    def __call__(self, dataset_dict: Json) -> Json:
        require_eight_bits(dataset_dict["file_name"])
        mapped: Json = super().__call__(dataset_dict)
        instances = mapped.get("instances")
        if self.fit_boxes and instances is not None and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return mapped


def _check_crop(crop: CfgNode) -> None:
    """Detectron2 asserts some of it, without naming the keys, and some of it in the workers."""
    if crop.TYPE not in _RELATIVE + _ABSOLUTE:
        allowed = ", ".join(_RELATIVE + _ABSOLUTE)
        raise ConfigurationError(f"INPUT.CROP.TYPE is {crop.TYPE!r}; choose from {allowed}")
    relative = crop.TYPE in _RELATIVE
    size = list(crop.SIZE)
    allowed = "two numbers above 0, at most 1" if relative else "two whole numbers above 0"
    fits = [0 < one <= 1 if relative else isinstance(one, int) and one > 0 for one in size]
    if len(size) != 2 or not all(fits) or (crop.TYPE == "absolute_range" and size[0] > size[1]):
        ordered = ", the lower first" if crop.TYPE == "absolute_range" else ""
        raise ConfigurationError(
            f"INPUT.CROP.SIZE is {size} with INPUT.CROP.TYPE {crop.TYPE}; it must be {allowed}"
            f"{ordered}"
        )
