"""Colours that differ as far as they can, in CIELAB.

Shape shorthand: N candidates, K classes; colours are RGB, 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Colour: TypeAlias = tuple[int, int, int]
Floats: TypeAlias = npt.NDArray[np.float32]

_LEVELS = 13
"""Of each channel, between which candidates are chosen."""
_LIGHTNESS = (45, 85)
"""Of candidates, 0..100: neither is lost below the other on a picture in grey."""
_VIVID, _MUTED = (150, 255), (40, 110)
"""From and to: how far the channels of candidates for things and for stuff are apart."""
_WEIGHT_OF_LIGHTNESS = 0.5
"""In a distance, as the lightness of a colour is mixed with that of the picture below, and objects
of a class differ in it."""
_MOST_ROUNDS = 10


@cache
def distinct_colours(vivid: tuple[bool, ...], taken: tuple[Colour, ...] = ()) -> tuple[Colour, ...]:
    """Colours of which the two that are most alike differ as far as is found: each in turn is the
    candidate farthest from those before, and then exchanged while one is farther from all others.

    Nothing is random: the same arguments give the same colours.

    Args:
        vivid: `(K,)` whether a class gets a vivid colour or a muted one.
        taken: colours that others have, and that these shall differ from.

    Returns:
        `(K,)` colours.
    """
    colours, points = _candidates()
    chroma = np.hypot(points[:, 1], points[:, 2])
    spread = np.ptp(colours.astype(np.float32), axis=1)
    allowed = {kind: _between(spread, _VIVID if kind else _MUTED) for kind in set(vivid)}
    fixed = weighted_lab(taken)
    # (N, K): a column for each class that has a colour.
    distances = np.full((len(points), len(vivid)), np.inf, np.float32)
    nearest_taken = _distances(points, fixed).min(axis=1, initial=np.inf)
    chosen = [-1] * len(vivid)
    for _ in range(_MOST_ROUNDS):
        before = list(chosen)
        for number, kind in enumerate(vivid):
            distances[:, number] = np.inf
            room = np.minimum(nearest_taken, distances.min(axis=1))
            # Of equal ones, as in the beginning, the most colourful.
            best = max(np.flatnonzero(allowed[kind]), key=lambda one: (room[one], chroma[one]))
            if chosen[number] < 0 or room[best] > room[chosen[number]]:
                chosen[number] = int(best)
            distances[:, number] = _distances(points, points[chosen[number]][None])[:, 0]
        if chosen == before:
            break
    return tuple(_colour(colours[number]) for number in chosen)


def weighted_lab(colours: Sequence[Colour]) -> Floats:
    """CIELAB `(K, 3)` with the weight of lightness in distances."""
    if not len(colours):
        return np.zeros((0, 3), np.float32)
    channels = np.asarray(colours, np.float32).reshape(1, -1, 3) / 255
    lab: Floats = cv2.cvtColor(channels, cv2.COLOR_RGB2LAB)[0]
    return lab * np.array((_WEIGHT_OF_LIGHTNESS, 1, 1), np.float32)


@cache
def _candidates() -> tuple[npt.NDArray[np.uint8], Floats]:
    """`(N, 3)` colours, and where they are."""
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    points = weighted_lab([_colour(one) for one in grid])
    kept = _between(points[:, 0] / _WEIGHT_OF_LIGHTNESS, _LIGHTNESS)
    return grid[kept], points[kept]


def _between(values: Floats, bounds: tuple[float, float]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (values >= bounds[0]) & (values <= bounds[1])
    return inside


def _distances(points: Floats, others: Floats) -> Floats:
    distances: Floats = np.linalg.norm(points[:, None] - others[None], axis=2)
    return distances


def _colour(channels: Sequence[float] | npt.NDArray[np.uint8]) -> Colour:
    red, green, blue = (int(channel) for channel in channels)
    return red, green, blue
