"""A fraction of the training images, to learn how a model fares with fewer of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)


def fraction_of(
    records: Sequence[Mapping[str, Any]], fraction: float, seed: int
) -> list[Mapping[str, Any]]:
    """A fraction of images, drawn by seed and image id alone.

    Neither the order of the records nor the process that draws matters. Of one seed a smaller
    fraction is a part of every larger one.

    Args:
        records: of Detectron2, with `image_id`, or else `file_name`.
        fraction: in (0, 1].
        seed: another one draws other images.

    Returns:
        `round(fraction * len(records))` of them, at least one, in the order given.
    """
    count = max(round(fraction * len(records)), 1)
    drawn = sorted(range(len(records)), key=lambda number: _draw(records[number], seed))
    logger.info(
        "DATASETS.FRACTION %s: %d of %d training images, drawn by DATASETS.FRACTION_SEED %d",
        fraction,
        count,
        len(records),
        seed,
    )
    return [records[number] for number in sorted(drawn[:count])]


def _draw(record: Mapping[str, Any], seed: int) -> bytes:
    """What orders the images: other ways to draw differ between versions of their libraries."""
    image = record["image_id"] if "image_id" in record else record["file_name"]
    return hashlib.sha256(f"{seed}/{image}".encode()).digest()
