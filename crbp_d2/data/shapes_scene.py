"""One scene of the shapes data: things of six outlines before regions of textured stuff."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .fields import MAX_SIDE, Json
from .shapes_drawing import (
    OUTLINES,
    TEXTURES,
    Generator,
    Grid,
    fill_outline,
    pixel_grid,
    smooth_noise,
)

_COLORS = {
    "disc": [230, 60, 60],
    "square": [60, 110, 230],
    "triangle": [240, 190, 40],
    "star": [170, 70, 210],
    "cross": [40, 180, 110],
    "ring": [240, 120, 200],
    "stripes": [120, 130, 60],
    "checkers": [90, 150, 160],
    "waves": [160, 110, 80],
    "speckles": [130, 130, 170],
}
_THINGS, _STUFF = list(OUTLINES), list(TEXTURES)
CATEGORY_IDS = {name: number for number, name in enumerate(_THINGS + _STUFF, start=1)}

# Scenes are drawn larger by this odd factor, and averaged down for smooth edges; a pixel belongs to
# what its centre shows.
_OVERSAMPLING = 3
_PLACEMENT_TRIALS = 15
# Fractions of an object that must lie in the image, and of that stay visible behind others.
_MIN_INSIDE, _MIN_VISIBLE = 0.5, 0.45
# Smaller remains of a stuff region are left unlabelled, as fraction of the image.
_MIN_STUFF = 0.01
_VOID = 0


@dataclass(frozen=True)
class ShapesConfig:
    """What the scenes are like.

    Args:
        size: side of the square images in pixels, from 32 to 8192.
        max_things: scenes have one to this many things.
        radius: smallest and largest radius of a thing, in image sides.
        noise: largest standard deviation of the pixel noise, in grey levels of 0 to 255.
    """

    size: int = 128
    max_things: int = 8
    radius: tuple[float, float] = (0.09, 0.22)
    noise: float = 8.0

    def __post_init__(self) -> None:
        if not 32 <= self.size <= MAX_SIDE or self.max_things < 1:
            raise ValueError(
                f"{self}: size must be from 32 to {MAX_SIDE} and max_things at least 1"
            )


@dataclass(frozen=True)
class Scene:
    """An image and its panoptic annotation.

    Args:
        image: (size, size, 3) uint8, RGB.
        ids: (size, size) int32 segment ids, 0 where unlabelled.
        segments: segment id -> category id.
    """

    image: np.ndarray
    ids: np.ndarray
    segments: dict[int, int]


def shapes_categories() -> list[Json]:
    """The categories of COCO's panoptic JSON: six things, four kinds of stuff."""
    return [
        {
            "id": number,
            "name": name,
            "supercategory": "shape" if name in OUTLINES else "texture",
            "isthing": int(name in OUTLINES),
            "color": _COLORS[name],
        }
        for name, number in CATEGORY_IDS.items()
    ]


def draw_scene(index: int, *, seed: int, config: ShapesConfig) -> Scene:
    """Draws scene number `index`, which depends on the arguments alone.

    Colours are random for each thing and region, so outline and texture alone tell the class.
    """
    rng = np.random.default_rng([seed, index])
    side = config.size * _OVERSAMPLING
    grid = pixel_grid(side)
    canvas, labels, names = _draw_stuff(rng, grid)
    for name, mask in _place_things(rng, config, side):
        _paint(rng, canvas, mask, grid)
        names.append(name)
        labels[mask > 0] = len(names) - 1
    # Light falls in from one side.
    light = 1 + rng.uniform(0, 0.2) * _ramp(rng, grid)
    canvas = cv2.resize(
        canvas * light[..., None], (config.size, config.size), interpolation=cv2.INTER_AREA
    )
    canvas += rng.uniform(0.3, 1) * config.noise * rng.standard_normal(canvas.shape)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    half = _OVERSAMPLING // 2
    return _annotate(rng, image, labels[half::_OVERSAMPLING, half::_OVERSAMPLING], names)


def _annotate(rng: Generator, image: np.ndarray, labels: np.ndarray, names: list[str]) -> Scene:
    """Gives each label in 0, ..., len(names) - 1 that occurs a random segment id."""
    areas = np.bincount(labels.reshape(-1), minlength=len(names))
    smallest = [_MIN_STUFF * labels.size if name in TEXTURES else 1 for name in names]
    random_ids = rng.choice(256**3 - 1, size=len(names), replace=False) + 1
    ids = np.where(areas >= smallest, random_ids, _VOID).astype(np.int32)
    segments = {
        int(value): CATEGORY_IDS[name]
        for value, name in zip(ids, names, strict=True)
        if value != _VOID
    }
    return Scene(image, ids[labels], segments)


def _draw_stuff(rng: Generator, grid: Grid) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(side, side, 3) float32 colours, (side, side) region numbers, the texture of each region."""
    side = len(grid[0])
    count = int(rng.integers(2, len(_STUFF) + 1))
    names = [_STUFF[choice] for choice in rng.permutation(len(_STUFF))[:count]]
    # Cells around well separated points; the wobble makes their borders irregular.
    while True:
        points = rng.uniform(0.05, 0.95, (count, 2))
        gaps = np.linalg.norm(points[:, None] - points, axis=2)[np.triu_indices(count, 1)]
        if gaps.min() > 0.35:
            break
    x = grid[0] + 0.045 * smooth_noise(rng, side, 0.25)
    y = grid[1] + 0.045 * smooth_noise(rng, side, 0.25)
    distances = np.stack([np.hypot(x - px, y - py) for px, py in points])
    regions = distances.argmin(axis=0)
    pattern = np.zeros((side, side), dtype=np.float32)
    for number, name in enumerate(names):
        pattern = np.where(regions == number, TEXTURES[name](rng, grid), pattern)
    first, second = np.stack([_two_colors(rng) for _ in names], axis=1)
    canvas = first[regions] + pattern[..., None] * (second - first)[regions]
    return canvas, regions, names


def _two_colors(rng: Generator) -> np.ndarray:
    """(2, 3) colours of different lightness, in random order."""
    first = rng.uniform(30, 160, 3)
    second = first + rng.uniform(45, 85) + rng.uniform(-25, 25, 3)
    pair = np.stack([first, second]).astype(np.float32)
    return rng.permutation(pair)


def _place_things(rng: Generator, config: ShapesConfig, side: int) -> list[tuple[str, np.ndarray]]:
    """Names and (side, side) uint8 masks from back to front; each stays visible enough.

    A thing for which no place is found is left out, except the first.
    """
    wanted = int(rng.integers(1, config.max_things + 1))
    placed: list[tuple[str, np.ndarray]] = []
    areas: list[int] = []
    visible = np.full((side, side), -1)
    for _ in range(wanted):
        for _ in range(_PLACEMENT_TRIALS):
            name = _THINGS[rng.integers(len(_THINGS))]
            mask, inside = _random_thing(rng, name, config, side)
            if inside < _MIN_INSIDE:
                continue
            trial = np.where(mask > 0, len(placed), visible)
            remaining = np.bincount(trial[trial >= 0], minlength=len(placed))[: len(placed)]
            if all(
                left >= _MIN_VISIBLE * area for left, area in zip(remaining, areas, strict=True)
            ):
                visible = trial
                placed.append((name, mask))
                areas.append(int(mask.sum()))
                break
    return placed


def _random_thing(
    rng: Generator, name: str, config: ShapesConfig, side: int
) -> tuple[np.ndarray, float]:
    """The mask of a thing, and the fraction of it that lies in the image."""
    radius = rng.uniform(*config.radius)
    angle = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.8, 1.25)
    centre = rng.uniform(0, 1, 2)
    mask = fill_outline(name, side, centre=centre, radius=radius, angle=angle, stretch=stretch)
    whole = fill_outline(
        name, side, centre=np.array([0.5, 0.5]), radius=radius, angle=angle, stretch=stretch
    )
    return mask, mask.sum() / whole.sum()


def _paint(rng: Generator, canvas: np.ndarray, mask: np.ndarray, grid: Grid) -> None:
    """Paints a thing in a colour that stands out, with a faint texture and a darker rim."""
    inside = mask > 0
    behind = canvas[inside].mean(axis=0)
    candidates = rng.uniform(20, 235, (4, 3))
    color = candidates[np.linalg.norm(candidates - behind, axis=1).argmax()]
    finish = (_plain, _ramp, _grain, _bands)[rng.integers(4)]
    shade = rng.uniform(8, 28) * finish(rng, grid)
    rim = inside & (
        cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=round(0.01 * len(mask))) == 0
    )
    shade[rim] -= 45
    canvas[inside] = np.clip(color + shade[inside][:, None], 0, 255)


def _plain(rng: Generator, grid: Grid) -> np.ndarray:
    return np.zeros_like(grid[0])


def _ramp(rng: Generator, grid: Grid) -> np.ndarray:
    """From -1 to 1 across the image, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return (np.cos(angle) * (grid[0] - 0.5) + np.sin(angle) * (grid[1] - 0.5)) * np.sqrt(2)


def _grain(rng: Generator, grid: Grid) -> np.ndarray:
    return 0.6 * smooth_noise(rng, len(grid[0]), 0.03)


def _bands(rng: Generator, grid: Grid) -> np.ndarray:
    return np.sin(2 * np.pi * (_ramp(rng, grid) / rng.uniform(0.08, 0.14)))
