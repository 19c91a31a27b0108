"""Outlines and textures of the shapes scenes.

Lengths are fractions of the image side, so that a scene looks the same at every resolution.
Patterns are values in [0, 1] that mix two colours.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Generator = np.random.Generator
# (height, width) x and y of the pixel centres, in image sides.
Grid = tuple[np.ndarray, np.ndarray]

_FIXED_POINT_BITS = 6


def pixel_grid(size: int) -> Grid:
    """x and y, each (size, size), in [0, 1]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _regular(corners: int, *, inner: float = 1.0) -> np.ndarray:
    """(n, 2) corners on the unit circle; with `inner` < 1 the tips of a star."""
    count = corners if inner == 1.0 else 2 * corners
    angles = 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    quarter = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return np.concatenate([quarter] + [quarter @ turn for turn in turns])


# Each outline fits the unit circle; a second polygon is a hole.
OUTLINES: dict[str, list[np.ndarray]] = {
    "disc": [_regular(48)],
    "square": [_regular(4)],
    "triangle": [_regular(3)],
    "star": [_regular(5, inner=0.42)],
    "cross": [_cross(0.3)],
    "ring": [_regular(48), 0.52 * _regular(48)],
}


def fill_outline(
    name: str,
    size: int,
    *,
    centre: np.ndarray,
    radius: float,
    angle: float,
    stretch: float,
) -> np.ndarray:
    """Draws an outline.

    Args:
        name: key of `OUTLINES`.
        size: side of the result in pixels.
        centre, radius: in image sides.
        angle: in radians.
        stretch: ratio of the two axes.

    Returns:
        (size, size) uint8, 1 inside.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    axes = np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])
    polygons = [
        np.round((points * axes @ rotation * radius + centre) * size * 2**_FIXED_POINT_BITS)
        for points in OUTLINES[name]
    ]
    mask = np.zeros((size, size), dtype=np.uint8)
    corners = [points.astype(np.int32) for points in polygons]
    cv2.fillPoly(mask, corners, (1,), shift=_FIXED_POINT_BITS)
    return mask


def smooth_noise(rng: Generator, size: int, scale: float) -> np.ndarray:
    """(size, size) noise of zero mean and unit variance, smooth over `scale` image sides."""
    # Drawn on a coarse grid: the values, and so the scene, don't depend on the resolution.
    cells = max(4, round(2 / scale))
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    noise = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _rotated(grid: Grid, angle: float) -> Grid:
    x, y = grid
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _sharpened(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _stripes(rng: Generator, grid: Grid) -> np.ndarray:
    along, _ = _rotated(grid, rng.uniform(0, np.pi))
    period = rng.uniform(0.06, 0.10)
    return _sharpened(np.sin(2 * np.pi * (along / period + rng.random())))


def _checkers(rng: Generator, grid: Grid) -> np.ndarray:
    u, v = _rotated(grid, rng.uniform(0, np.pi / 2))
    period = rng.uniform(0.11, 0.17)
    phase = rng.random(2)
    product = np.sin(2 * np.pi * (u / period + phase[0])) * np.sin(
        2 * np.pi * (v / period + phase[1])
    )
    return _sharpened(2 * product)


def _waves(rng: Generator, grid: Grid) -> np.ndarray:
    u, v = _rotated(grid, rng.uniform(0, np.pi))
    period = rng.uniform(0.09, 0.13)
    bend = rng.uniform(0.035, 0.05) * np.sin(
        2 * np.pi * (v / rng.uniform(0.18, 0.26) + rng.random())
    )
    return _sharpened(np.sin(2 * np.pi * ((u + bend) / period + rng.random())))


def _speckles(rng: Generator, grid: Grid) -> np.ndarray:
    noise = smooth_noise(rng, len(grid[0]), rng.uniform(0.05, 0.07))
    return _sharpened(noise - rng.uniform(0.5, 0.9))


TEXTURES: dict[str, Callable[[Generator, Grid], np.ndarray]] = {
    "stripes": _stripes,
    "checkers": _checkers,
    "waves": _waves,
    "speckles": _speckles,
}
