"""Shapes of an image painted over one another, so that every pixel belongs to one segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..fields import Json
from .files import upright
from .scene import Shape, Size


@dataclass
class Tally:
    """What became of the shapes of an image.

    Args:
        segments: those that can be seen, as COCO's `segments_info`.
        vanished: place and class of segments of which nothing is left.
        empty: place and class of shapes that had no pixel by themselves.
        pixels: number of all of the image.
        twice: of those that several segments covered.
        filled: of those that had no segment and got that of the stuff to fill with.
        unlabelled: of those that have none.
    """

    segments: list[Json] = field(default_factory=list)
    vanished: list[tuple[str, str]] = field(default_factory=list)
    empty: list[tuple[str, str]] = field(default_factory=list)
    pixels: int = 0
    twice: int = 0
    filled: int = 0
    unlabelled: int = 0


class _Canvas:
    """Segment ids of an image while shapes are painted on it."""

    def __init__(self, size: Size, categories: Mapping[str, Json]) -> None:
        width, height = size
        self.ids = np.zeros((height, width), dtype=np.int32)
        self.twice = np.zeros((height, width), dtype=bool)
        self.segments: list[Json] = []
        self.places: list[tuple[str, str]] = []
        self._categories = categories
        self._stuff: dict[str, int] = {}

    def segment(self, place: str, name: str, *, crowd: bool = False) -> int:
        """The id of a new segment, or of the one that a class of stuff has already."""
        if name in self._stuff:
            return self._stuff[name]
        category = self._categories[name]
        value = len(self.segments) + 1
        isthing = bool(category["isthing"])
        if not isthing:
            self._stuff[name] = value
        iscrowd = int(crowd and isthing)
        self.segments.append({"id": value, "category_id": category["id"], "iscrowd": iscrowd})
        self.places.append((place, name))
        return value

    def add(self, shape: Shape) -> None:
        """Paint a shape over all that is there."""
        value = self.segment(shape.place, shape.category, crowd=shape.crowd)
        height, width = shape.mask.shape
        window = np.s_[shape.top : shape.top + height, shape.left : shape.left + width]
        below = self.ids[window]
        self.twice[window] |= shape.mask & (below != 0) & (below != value)
        below[shape.mask] = value


def paint(
    shapes: Sequence[Shape],
    size: Size,
    categories: Mapping[str, Json],
    *,
    order: Sequence[str] = (),
    fill: str | None = None,
    orientation: int = 1,
) -> tuple[npt.NDArray[np.int32], Tally]:
    """Paints larger shapes first, and crowds before single objects.

    Args:
        shapes: of classes in `categories`; those of a stuff class become one segment.
        size: of the image that they fit.
        categories: by name.
        order: classes above all others, from the lowest to the topmost.
        fill: stuff class of the pixels where nothing is.
        orientation: of that image by EXIF; the result is upright.

    Returns:
        Segment ids (height, width), 0 where nothing is; and what became of the shapes.
    """
    canvas = _Canvas(size, categories)
    for shape in _from_below(shapes, categories, order):
        canvas.add(shape)
    tally = Tally(
        empty=[(shape.place, shape.category) for shape in shapes if not shape.area],
        pixels=canvas.ids.size,
        twice=int(np.count_nonzero(canvas.twice)),
    )
    gaps = canvas.ids == 0
    tally.unlabelled = int(np.count_nonzero(gaps))
    if fill is not None and tally.unlabelled:
        canvas.ids[gaps] = canvas.segment("the gaps", fill)
        tally.filled, tally.unlabelled = tally.unlabelled, 0
    ids = upright(canvas.ids, orientation)
    _measure(ids, canvas, tally)
    return ids, tally


def _from_below(
    shapes: Sequence[Shape], categories: Mapping[str, Json], order: Sequence[str]
) -> list[Shape]:
    """Those with pixels, in the order in which they are painted."""
    ranks = {name: rank for rank, name in enumerate(order, start=1)}

    def position(shape: Shape) -> tuple[bool, int, bool, int]:
        single = not (shape.crowd and categories[shape.category]["isthing"])
        return not shape.below, ranks.get(shape.category, 0), single, -shape.area

    # Sorting keeps the order of what is equal.
    return sorted((shape for shape in shapes if shape.area), key=position)


def _measure(ids: npt.NDArray[np.int32], canvas: _Canvas, tally: Tally) -> None:
    """Area and box of what can be seen of each segment."""
    areas = np.bincount(ids.reshape(-1), minlength=len(canvas.segments) + 1)
    boxes = ndimage.find_objects(ids, max_label=len(canvas.segments))
    for segment, place, found in zip(canvas.segments, canvas.places, boxes, strict=True):
        if found is None:
            tally.vanished.append(place)
            continue
        rows, columns = found
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        tally.segments.append({**segment, "area": int(areas[segment["id"]]), "bbox": box})
