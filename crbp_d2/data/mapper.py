"""Detectron2's mapper, where it would lose pixels without a word, or fail."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data.transforms import RandomCrop

from crbp_d2.core import ConfigurationError

from .augmentations import RandomPixelCrop, more_augmentations
from .fields import Json
from .reading import require_eight_bits

_RELATIVE, _ABSOLUTE = ("relative", "relative_range"), ("absolute", "absolute_range")


class PanopticMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, for panoptic data and others.

    Differences: an image that eight bits don't hold is an error; `INPUT.CROP` keeps the holes of
    masks in either `INPUT.MASK_FORMAT`, needs no shapely, and takes images without instances;
    colours are changed and images turned by the keys `INPUT.RANDOM_*` of this project.

    Args:
        is_train: see `DatasetMapper`.
        fit_boxes: whether boxes are those of the masks, as they must be after a crop or a turn.
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
        turned = False
        if is_train:
            options["augmentations"] += more_augmentations(cfg)
            turned = bool(cfg.MODEL.MASK_ON and cfg.INPUT.get("RANDOM_ROTATION"))
        # Detectron2 fails to do so where there is no mask.
        options["fit_boxes"] = options.pop("recompute_boxes") or turned
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
