"""Config keys that the sizes and numbers in a data set call for, each with its reason.

The rules are those of "What the data ask for" in `datasets/README.md`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from .measures import Floats, Measures

logger = logging.getLogger(__name__)

SMALL, LARGE = 0.1, 0.95
"""Inputs and anchors are made for the objects between these quantiles."""
LEAST_SIZE = 16
"""Pixels of the square root of an object's area: four cells of an FPN's finest map."""
MOST_ENLARGED = 2.0
LARGEST_INPUT = 800
"""Pixels of the shorter side: Detectron2's, for memory and time."""
TRAIN_SHARES = (0.8, 0.9, 1.0)
LONGEST = 2.0
"""Shorter sides in the longest longer one."""
GRID, TRAIN_GRID = 32, 16
"""Pixels; the former are a stride of the coarsest map of a backbone."""
ANCHOR_STRIDES = (2, 8)
"""Strides in the size of an anchor, from and to: smaller ones leave gaps between neighbours, and
the latter are Detectron2's."""
PROPOSALS, DETECTIONS = 2, 4 / 3
"""For each object of the image that has most."""
ROUND = 50
SMALLEST_STUFF = 0.05
LARGEST_LIMIT = 4096
"""Pixels: Detectron2's."""


@dataclass(frozen=True)
class Suggestion:
    """A key, its value and the figure that calls for it.

    Attributes:
        key: its full name.
        value: numbers, in lists where the key has several.
        reason: a sentence without its full stop.
    """

    key: str
    value: Any
    reason: str


def suggest(measures: Measures, cfg: CfgNode, size: int | None = None) -> list[Suggestion]:
    """What a data set calls for.

    Args:
        measures: of the training data.
        cfg: of the model that shall be trained.
        size: pixels of the shorter side of inputs, where the user has time or memory for no more.
            By default that which the objects ask for.
    """
    inputs = _inputs(measures, cfg, size)
    if not len(measures.areas):
        return [*inputs, *_stuff(measures)]
    test = {one.key: one.value for one in inputs}
    scales = measures.scales(test["INPUT.MIN_SIZE_TEST"], test["INPUT.MAX_SIZE_TEST"])
    sides = measures.box_sides * scales[measures.image_of]
    return [*inputs, *_anchors(sides, cfg), *_numbers(measures, cfg), *_stuff(measures)]


def _inputs(measures: Measures, cfg: CfgNode, size: int | None) -> list[Suggestion]:
    shorter = float(np.median(measures.images.min(axis=1)))
    small = float(np.quantile(measures.sizes, SMALL)) if len(measures.areas) else LEAST_SIZE
    factor = min(max(1.0, LEAST_SIZE / small), MOST_ENLARGED)
    side = size or _to_grid(min(factor * shorter, LARGEST_INPUT))
    ratio = float(np.quantile(measures.images.max(axis=1) / measures.images.min(axis=1), 0.99))
    longest = GRID * math.ceil(side * min(ratio, LONGEST) / GRID)
    reason = f"the shorter side of the images is {shorter:.0f} pixels (median)"
    if size:
        reason = f"as asked; {reason}"
    if len(measures.areas):
        resized = measures.sizes * measures.scales(side, longest)[measures.image_of]
        seen = float(np.quantile(resized, SMALL))
        reason += (
            f"; {SMALL:.0%} of the objects are smaller than {small:.0f} pixels in the files, and "
            f"than {seen:.0f} in this size"
        )
        if seen < LEAST_SIZE and side >= LARGEST_INPUT:
            reason += ": cut the images into tiles if these count"
    longer = f"longer sides are up to {ratio:.2f} times the shorter ones (99 % of images)"
    if ratio > LONGEST:
        longer += f", and {LONGEST:g} times is the most here"
    shares = ", ".join(f"{share:g}" for share in TRAIN_SHARES)
    train = sorted({_to_grid(share * side, TRAIN_GRID) for share in TRAIN_SHARES})
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        train = [train[0], train[-1]]
    return [
        Suggestion("INPUT.MIN_SIZE_TRAIN", train, f"{shares} times that of tests, below"),
        Suggestion("INPUT.MAX_SIZE_TRAIN", longest, longer),
        Suggestion("INPUT.MIN_SIZE_TEST", side, reason),
        Suggestion("INPUT.MAX_SIZE_TEST", longest, longer),
    ]


def _anchors(sides: Floats, cfg: CfgNode) -> Iterator[Suggestion]:
    """The sizes of anchors.

    Args:
        sides: square roots of the areas of boxes, in pixels of the model's input.
    """
    names = list(cfg.MODEL.RPN.IN_FEATURES)
    levels = [re.fullmatch(r"(?:p|res)(\d)", name) for name in names]
    strides = [2 ** int(level[1]) for level in levels if level]
    if len(strides) < len(names):
        logger.warning(
            "MODEL.RPN.IN_FEATURES %s: not all are called p2, p3, ... by their strides, so no "
            "sizes of anchors are suggested",
            names,
        )
        return
    small, median, large = np.quantile(sides, (SMALL, 0.5, LARGE))
    # A square that is larger by this factor than an anchor overlaps it by a half.
    reach = math.sqrt(2) * strides[-1] / strides[0]
    least, most = (factor * strides[0] for factor in ANCHOR_STRIDES)
    first = min(max(small, large / reach, least), most)
    yield Suggestion(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        [[round(first * stride / strides[0])] for stride in strides],
        f"boxes of objects, as the model gets them, are {small:.0f} ({SMALL:.0%}), {median:.0f} "
        f"(median) and {large:.0f} ({LARGE:.0%}) pixels wide and high; a size for each of "
        f"{', '.join(names)}",
    )


def _numbers(measures: Measures, cfg: CfgNode) -> Iterator[Suggestion]:
    most = int(measures.objects.max())
    median, nearly_all = np.quantile(measures.objects, (0.5, 0.99))
    seen = f"{most} objects (median {median:.0f}, 99 % of images up to {nearly_all:.0f})"
    proposals = _rounded_up(PROPOSALS * most)
    rpn = cfg.MODEL.RPN
    for phase in ("TRAIN", "TEST"):
        before, after = f"PRE_NMS_TOPK_{phase}", f"POST_NMS_TOPK_{phase}"
        what = f"twice {proposals} proposals from each map, before the NMS"
        yield _at_least(f"MODEL.RPN.{before}", 2 * proposals, rpn[before], what)
        what = f"{PROPOSALS} proposals for each of up to {seen}"
        yield _at_least(f"MODEL.RPN.{after}", proposals, rpn[after], what)
    detections = _rounded_up(DETECTIONS * most)
    what = f"a third more than the largest number of objects in an image, {most}"
    yield _at_least("TEST.DETECTIONS_PER_IMAGE", detections, cfg.TEST.DETECTIONS_PER_IMAGE, what)


def _at_least(key: str, number: int, base: int, what: str) -> Suggestion:
    """A number as high as is needed, and no lower than it is."""
    if base >= number:
        return Suggestion(key, base, f"{what}, for which the base's {base} do")
    return Suggestion(key, number, f"{what}; the base has {base}")


def _stuff(measures: Measures) -> Iterator[Suggestion]:
    if not len(measures.stuff):
        return
    smallest = float(np.quantile(measures.stuff, SMALLEST_STUFF))
    reason = (
        f"smaller regions of stuff are taken for mistakes; {SMALLEST_STUFF:.0%} of the true ones "
        f"are smaller than {smallest:.0f} pixels"
    )
    if smallest > LARGEST_LIMIT:
        reason += f", and {LARGEST_LIMIT} is Detectron2's"
    yield Suggestion(
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        max(1, math.floor(min(smallest, LARGEST_LIMIT))),
        reason,
    )


def _to_grid(pixels: float, grid: int = GRID) -> int:
    return grid * max(1, round(pixels / grid))


def _rounded_up(number: float) -> int:
    return ROUND * math.ceil(number / ROUND)
