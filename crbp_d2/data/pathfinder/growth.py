"""Contours that grow dash by dash and keep clear of each other.

A dash is a tuple `(x, y, tail_x, tail_y, head_x, head_y)` in canvas pixels, its middle first.
Everything here is plain Python on floats: an image needs a few hundred dashes tried one after the
other, which array code would only slow down.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from crbp_d2.data.validate import DatasetError

from .config import PathfinderConfig

Dash = tuple[float, float, float, float, float, float]
Uniform = Callable[[], float]

TURN_TABLE_SIZE = 4096
FULL_TURN = 2 * math.pi
MAX_RESTARTS = 5000


class Scene(NamedTuple):
    """The contours of an image. The tail of the first dash of `target` carries the dot."""

    target: list[Dash]
    rival: list[Dash]
    distractors: list[list[Dash]]
    contours_tried: int


@functools.lru_cache(maxsize=32)
def turn_table(continuity: float) -> list[float]:
    """Inverse distribution of the turning angle, at the centres of equally likely bins (radians).

    The density is proportional to `cos^2(continuity * angle)` for `|continuity * angle| < pi/2`.
    """
    angle = np.linspace(-math.pi / 2, math.pi / 2, 4 * TURN_TABLE_SIZE + 1)
    cumulative = 0.5 + angle / math.pi + np.sin(2 * angle) / (2 * math.pi)
    centres = (np.arange(TURN_TABLE_SIZE) + 0.5) / TURN_TABLE_SIZE
    table: list[float] = (np.interp(centres, cumulative, angle) / continuity).tolist()
    return table


def _squared_distance_to_dash(x: float, y: float, dash: Dash) -> float:
    _, _, tail_x, tail_y, head_x, head_y = dash
    along_x, along_y = head_x - tail_x, head_y - tail_y
    share = (x - tail_x) * along_x + (y - tail_y) * along_y
    share = min(max(share / (along_x * along_x + along_y * along_y), 0.0), 1.0)
    return (tail_x + share * along_x - x) ** 2 + (tail_y + share * along_y - y) ** 2


def squared_distance(first: Dash, second: Dash) -> float:
    """Squared distance between the centre lines of two dashes that do not cross."""
    return min(
        _squared_distance_to_dash(first[2], first[3], second),
        _squared_distance_to_dash(first[4], first[5], second),
        _squared_distance_to_dash(second[2], second[3], first),
        _squared_distance_to_dash(second[4], second[5], first),
    )


class Canvas:
    """Dashes placed so far, found by place.

    Each dash is kept in the grid cell of its middle. A cell is twice as wide as the largest
    distance between the middles of two dashes in conflict, so all that a new dash could touch
    lies in the four cells that meet at the grid corner next to it.
    """

    def __init__(self, config: PathfinderConfig) -> None:
        self.config = config
        self.reach = config.clearance + config.dash_length
        self.per_pixel = 0.5 / self.reach
        self.stride = int(config.size * self.per_pixel) + 2
        self.cells: defaultdict[int, list[Dash]] = defaultdict(list)
        # From the cell at the lower right of a grid corner to all four.
        self.round_corner = (-self.stride - 1, -self.stride, -1, 0)

    def _cell(self, x: float, y: float) -> int:
        return int(y * self.per_pixel) * self.stride + int(x * self.per_pixel)

    def is_clear(self, x: float, y: float) -> bool:
        """Whether a point is clear of every dash."""
        limit = self.config.clearance**2
        corner = self._cell(x + self.reach, y + self.reach)
        return all(
            _squared_distance_to_dash(x, y, dash) >= limit
            for offset in self.round_corner
            for dash in self.cells.get(corner + offset, ())
        )

    def remove(self, contour: list[Dash]) -> None:
        """Take away the contour placed last."""
        for dash in contour:
            self.cells[self._cell(dash[0], dash[1])].pop()

    def grow(self, count: int, start: tuple[float, float], uniform: Uniform) -> list[Dash] | None:
        """Place a contour of `count` dashes from the point `start`, or nothing and return None.

        The first heading is uniform. Each further dash leaves the middle of the gap, one margin
        beyond the last head, in a new direction. A dash may come near the one before it in its
        contour, and no other.
        """
        # This loop is most of the time of an image: everything in it is a local name.
        config, cells, turns = self.config, self.cells, turn_table(self.config.continuity)
        near, round_corner = cells.get, self.round_corner
        stride, per_pixel = self.stride, self.per_pixel
        cos, sin = math.cos, math.sin
        length, margin = config.dash_length, config.margin
        low, high = config.padding, config.size - config.padding
        too_close, far = config.clearance**2, self.reach**2
        tries = range(config.turns_per_dash)
        contour: list[Dash] = []
        last: Dash | None = None
        heading = pivot_x = pivot_y = 0.0
        tail_x, tail_y = start
        for _ in range(count):
            for _ in tries:
                if last is None:
                    direction = uniform() * FULL_TURN
                    along_x, along_y = cos(direction), sin(direction)
                else:
                    direction = heading + turns[int(uniform() * TURN_TABLE_SIZE)]
                    along_x, along_y = cos(direction), sin(direction)
                    tail_x, tail_y = pivot_x + margin * along_x, pivot_y + margin * along_y
                head_x, head_y = tail_x + length * along_x, tail_y + length * along_y
                if not (low <= head_x <= high and low <= head_y <= high):
                    continue
                if not (low <= tail_x <= high and low <= tail_y <= high):
                    continue
                x, y = 0.5 * (tail_x + head_x), 0.5 * (tail_y + head_y)
                dash = (x, y, tail_x, tail_y, head_x, head_y)
                corner = int(y * per_pixel + 0.5) * stride + int(x * per_pixel + 0.5)
                for offset in round_corner:
                    for other in near(corner + offset, ()):
                        right, down = other[0] - x, other[1] - y
                        apart = right * right + down * down
                        if apart >= far or other is last:
                            continue
                        if apart < too_close or squared_distance(dash, other) < too_close:
                            break
                    else:
                        continue
                    break
                else:
                    break
            else:
                self.remove(contour)
                return None
            contour.append(dash)
            cells[int(y * per_pixel) * stride + int(x * per_pixel)].append(dash)
            last, heading = dash, direction
            pivot_x, pivot_y = head_x + margin * along_x, head_y + margin * along_y
        return contour


def grow_scene(config: PathfinderConfig, uniform: Uniform) -> Scene:
    """Grow the two long contours, then the distractors.

    One long contour is kept while up to `rivals_per_contour` are tried beside it, starting at
    `seed_distance` from it in a uniform direction. Either of the two is then the target with equal
    chance. Distractors start at a uniform point among the clear ones.

    Args:
        uniform: draws from [0, 1), the only source of chance.

    Raises:
        DatasetError: if the contours find no room.
    """
    canvas = Canvas(config)
    free = config.size - 2 * config.edge_keep
    tried = 0
    for _ in range(MAX_RESTARTS):
        tried += 1
        start = (config.edge_keep + uniform() * free, config.edge_keep + uniform() * free)
        first = canvas.grow(config.contour_length, start, uniform)
        if first is None:
            continue
        for _ in range(config.rivals_per_contour):
            tried += 1
            direction = uniform() * FULL_TURN
            rival_start = (
                start[0] + config.seed_distance * math.cos(direction),
                start[1] + config.seed_distance * math.sin(direction),
            )
            second = canvas.grow(config.contour_length, rival_start, uniform)
            if second is not None:
                target, rival = (first, second) if uniform() < 0.5 else (second, first)
                distractors, distractors_tried = _grow_distractors(canvas, uniform)
                return Scene(target, rival, distractors, tried + distractors_tried)
        canvas.remove(first)
    raise DatasetError(
        f"two contours of contour_length={config.contour_length} dashes found no room in "
        f"{MAX_RESTARTS} attempts on a canvas of {config.size} pixels; take fewer, or shorter ones"
    )


def _grow_distractors(canvas: Canvas, uniform: Uniform) -> tuple[list[list[Dash]], int]:
    config = canvas.config
    free = config.size - 2 * config.padding
    distractors: list[list[Dash]] = []
    tried = 0
    for _ in range(config.distractor_count):
        for _ in range(config.distractor_tries):
            tried += 1
            start = (config.padding + uniform() * free, config.padding + uniform() * free)
            if not canvas.is_clear(*start):
                continue
            contour = canvas.grow(config.distractor_length, start, uniform)
            if contour is not None:
                distractors.append(contour)
                break
    return distractors, tried
