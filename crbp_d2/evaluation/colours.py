"""Colours of segments: fixed by class, and by object within the pictures of an image.

Shape shorthand: a picture of H x W pixels; colours are RGB, 0..255.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from crbp_d2.evaluation.palette import Colour, distinct_colours, weighted_lab

Map: TypeAlias = npt.NDArray[np.integer[Any]]
Info: TypeAlias = dict[str, Any]

SAME_OBJECT = 0.5
"""Two objects of a class that overlap by more (intersection over union) are the same: the rule of
panoptic quality, which leaves no object two partners."""
_LIGHTNESS = 0.18
_HUE = (0.05, 0.14)
_SHARES = (1, 0.6, 0.3)
"""Of a shift, which is reduced where it leads to another class."""
# Multiples of these, modulo 1, are spread evenly however many there are (Roberts 2018, "The
# unreasonable effectiveness of quasirandom sequences").
_PLASTIC = (0.7548776662466927, 0.5698402909980532)


def class_colours(metadata: Any) -> tuple[list[Colour], list[Colour]]:
    """Colours of the thing classes and of the stuff classes, by their number.

    They are those of the data set, the `color` of its categories; classes without one have colours
    that differ from those and from each other as far as they can, of things vivid and of stuff
    muted ones.

    Args:
        metadata: of a panoptic data set.
    """
    own: list[Sequence[float] | None] = []
    isthing: list[bool] = []
    for kind in ("thing", "stuff"):
        given = list(metadata.get(f"{kind}_colors") or ())
        names = metadata.get(f"{kind}_classes") or ()
        given += [None] * (len(names) - len(given))
        own += given
        isthing += [kind == "thing"] * len(given)
    taken = tuple(_colour(colour) for colour in own if colour is not None)
    vivid = tuple(thing for thing, colour in zip(isthing, own, strict=True) if colour is None)
    found = iter(distinct_colours(vivid, taken))
    colours = [next(found) if colour is None else _colour(colour) for colour in own]
    things = sum(isthing)
    return colours[:things], colours[things:]


class ObjectColours:
    """Colours of the segments of one image, the same in all of its pictures.

    Stuff has the colour of its class. An object has a shade of that colour, twice as near to it as
    to that of another class of things where there is room, and the same one in every picture in
    which it is found again; see `SAME_OBJECT`.

    Args:
        metadata: of the data set.
    """

    def __init__(self, metadata: Any) -> None:
        self._things, self._stuff = class_colours(metadata)
        self._points = weighted_lab(self._things)
        # Few classes leave room for shades that differ more.
        self._hue = min(max(_HUE[0], 0.4 / max(1, len(self._things))), _HUE[1])
        self._numbers: Counter[int] = Counter()
        # Of each picture its new objects: where they are, their classes and numbers in these.
        self._known: list[tuple[Map, list[int], list[int]]] = []

    def of(self, segments: Map, infos: Sequence[Info]) -> dict[int, Colour]:
        """The colour of each segment, by its id. Objects not seen before get new ones.

        Args:
            segments: `(H, W)` segment ids; the same size every time.
            infos: per segment `id`, `isthing` and contiguous `category_id`.
        """
        objects = [info for info in infos if info["isthing"]]
        classes = [info["category_id"] for info in objects]
        places = indexed(segments, [info["id"] for info in objects])
        seen = self._recognised(places, classes)
        numbers = [
            self._new_number(category) if number is None else number
            for number, category in zip(seen, classes, strict=True)
        ]
        new = [place for place, number in enumerate(seen) if number is None]
        if new:
            known = indexed(places, [place + 1 for place in new])
            self._known.append(
                (known, [classes[place] for place in new], [numbers[place] for place in new])
            )
        found = {
            info["id"]: self._stuff[info["category_id"]] for info in infos if not info["isthing"]
        }
        for info, number in zip(objects, numbers, strict=True):
            found[info["id"]] = self._shade(info["category_id"], number)
        return found

    def _new_number(self, category: int) -> int:
        self._numbers[category] += 1
        return self._numbers[category] - 1

    def _recognised(self, places: Map, classes: Sequence[int]) -> list[int | None]:
        """For each object the number that it has in its class, if it was seen before."""
        found: list[int | None] = [None] * len(classes)
        for known, of_class, numbers in self._known:
            rows, columns = len(of_class) + 1, len(classes) + 1
            joint = np.bincount((known * columns + places).ravel(), minlength=rows * columns)
            common = joint.reshape(rows, columns)
            either = common.sum(axis=1)[:, None] + common.sum(axis=0)[None] - common
            same = (common > SAME_OBJECT * either)[1:, 1:]
            for row, column in zip(*np.nonzero(same), strict=True):
                if found[column] is None and of_class[row] == classes[column]:
                    found[column] = numbers[row]
        return found

    def _shade(self, category: int, number: int) -> Colour:
        """The colour of a class for its first object, shades of it for others."""
        shades = [self._shifted(category, number, part) for part in _SHARES]
        away = np.linalg.norm(weighted_lab(shades)[:, None] - self._points[None], axis=2)
        for shade, distances in zip(shades, away, strict=True):
            if 2 * distances[category] <= np.delete(distances, category).min(initial=np.inf):
                return shade
        return shades[-1]

    def _shifted(self, category: int, number: int, part: float) -> Colour:
        """A shade, or a part of the way to it."""
        red, green, blue = (channel / 255 for channel in self._things[category])
        hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
        across, along = (part * ((0.5 + number * step) % 1 - 0.5) for step in _PLASTIC)
        hue = (hue + 2 * self._hue * across) % 1
        lightness = min(max(lightness + 2 * _LIGHTNESS * along, 0.25), 0.8) if number else lightness
        return _rgb(hue, lightness, saturation)


def indexed(segments: Map, ids: Sequence[int]) -> npt.NDArray[np.int64]:
    """`(H, W)`: 1, 2, ... where a segment has the first, second, ... of some ids, else 0."""
    if not ids:
        return np.zeros(segments.shape, np.int64)
    order = np.argsort(ids)
    ordered = np.asarray(ids)[order]
    nearest = np.minimum(np.searchsorted(ordered, segments), len(ids) - 1)
    return np.where(ordered[nearest] == segments, order[nearest] + 1, 0)


def _colour(channels: Sequence[float]) -> Colour:
    red, green, blue = (min(max(round(channel), 0), 255) for channel in channels)
    return red, green, blue


def _rgb(hue: float, lightness: float, saturation: float) -> Colour:
    return _colour([255 * value for value in colorsys.hls_to_rgb(hue, lightness, saturation)])
