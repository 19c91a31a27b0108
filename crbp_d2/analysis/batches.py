"""Test images in batches that change no result: one way for every tool."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from crbp_d2.core import ConfigurationError
from crbp_d2.data import build_test_loader
from crbp_d2.data.loaders import is_pathfinder

CONTOUR_BATCH = 16
"""Images of a contour model, by default: several at a time are faster."""


def scoring_batches(cfg: CfgNode, name: str, size: int | None = None, **options: Any) -> Any:
    """The test images of a data set, in order.

    Photographs come one by one, as in training's own evaluation: a batch pads its images to the
    size of the largest, and what a model finds beside the padding is not what it finds without. The
    images of a Pathfinder data set are of one size, so that nothing is padded, and scores are the
    same for batches of any size, but of a model with `BatchBN`.

    Args:
        cfg: of the model.
        name: of a registered data set.
        size: images of a batch; None takes `TEST.IMS_PER_BATCH` or, where that is 0,
            `CONTOUR_BATCH`; for photographs 1.
        options: for `crbp_d2.data.build_test_loader`.

    Returns:
        A loader of lists of mapped records.

    Raises:
        ConfigurationError: the size is below 1, or above 1 for photographs.
    """
    if size is not None and size < 1:
        raise ConfigurationError(f"--batch-size must be at least 1, got {size}")
    if is_pathfinder(name):
        size = size or cfg.TEST.IMS_PER_BATCH or CONTOUR_BATCH
        return build_test_loader(cfg, name, batch_size=size, **options)
    if size not in (None, 1):
        raise ConfigurationError(
            f"--batch-size {size}: only images of a Pathfinder data set come in batches; those of "
            f"{name} come one by one, as the padding of a batch would change their scores; leave "
            "--batch-size out"
        )
    return build_test_loader(cfg, name, batch_size=1, **options)
