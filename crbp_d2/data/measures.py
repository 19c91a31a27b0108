"""Sizes and numbers of what a panoptic data set holds, without a look at its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crbp_d2.progress import tqdm

from .fields import Json
from .source import PanopticSource
from .validate import read_json

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measures:
    """Of N images, M objects and S segments of stuff. Objects are things that are no crowds.

    Attributes:
        images: `(N, 2)` heights and widths, in pixels.
        objects: `(N,)` numbers of objects.
        areas: `(M,)` pixels of each object.
        boxes: `(M, 2)` heights and widths of their boxes, in pixels.
        image_of: `(M,)` the image of each object, 0..N-1.
        stuff: `(S,)` pixels of each segment of stuff.
        pixels: category id -> pixels of all its segments, crowds included.
    """

    images: Floats
    objects: npt.NDArray[np.int64]
    areas: Floats
    boxes: Floats
    image_of: npt.NDArray[np.int64]
    stuff: Floats
    pixels: Mapping[int, int]

    def scales(self, shortest: int, longest: int) -> Floats:
        """`(N,)` factors of Detectron2's resize.

        Args:
            shortest: pixels of the shorter side, `INPUT.MIN_SIZE_*`; 0 for no resize.
            longest: that the longer side may have, `INPUT.MAX_SIZE_*`.
        """
        if not shortest:
            return np.ones(len(self.images))
        return np.minimum(shortest / self.images.min(axis=1), longest / self.images.max(axis=1))

    @property
    def sizes(self) -> Floats:
        """`(M,)` square roots of the objects' areas, in pixels of the files."""
        return np.sqrt(self.areas)

    @property
    def box_sides(self) -> Floats:
        """`(M,)` square roots of the areas of their boxes, in pixels of the files."""
        return np.sqrt(self.boxes.prod(axis=1))

    @property
    def shares(self) -> Floats:
        """`(M,)` their sizes in those of their images, in 0..1; no resize changes them."""
        return self.sizes / np.sqrt(self.images.prod(axis=1))[self.image_of]


def measure(source: PanopticSource) -> Measures:
    """Measure a data set by the areas and boxes that its preparation has found.

    Args:
        source: prepared.
    """
    return measured(read_json(source.measured_json))


def measured(content: Mapping[str, Any]) -> Measures:
    """Measure the content of a panoptic JSON.

    Args:
        content: whose segments have the `area` and `bbox` of their pixels.
    """
    things = {one["id"] for one in content["categories"] if one["isthing"]}
    numbers = {image["id"]: number for number, image in enumerate(content["images"])}
    objects: list[Json] = []
    image_of: list[int] = []
    stuff: list[int] = []
    pixels: Counter[int] = Counter({one["id"]: 0 for one in content["categories"]})
    # disable=None: no bar where the output isn't a terminal.
    for entry in tqdm(content["annotations"], "measuring", unit="image", disable=None):
        for segment in entry["segments_info"]:
            pixels[segment["category_id"]] += segment["area"]
            if segment["category_id"] not in things:
                stuff.append(segment["area"])
            elif not segment["iscrowd"]:
                objects.append(segment)
                image_of.append(numbers[entry["image_id"]])
    sizes = [(image["height"], image["width"]) for image in content["images"]]
    boxes = [(one["bbox"][3], one["bbox"][2]) for one in objects]
    return Measures(
        images=np.array(sizes, float),
        objects=np.bincount(np.array(image_of, int), minlength=len(sizes)),
        areas=np.array([one["area"] for one in objects], float),
        boxes=np.array(boxes, float).reshape(-1, 2),
        image_of=np.array(image_of, int),
        stuff=np.array(stuff, float),
        pixels=pixels,
    )
