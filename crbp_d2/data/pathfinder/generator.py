"""A Pathfinder image from a config, a seed and an index."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from .config import PathfinderConfig
from .draw import Bytes, draw
from .growth import Dash, grow_scene


def generate(
    config: PathfinderConfig, seed: int, index: int
) -> tuple[Bytes, Bytes, dict[str, Any]]:
    """Draw image number `index` of the stream `seed`; the same arguments give the same image.

    Returns:
        The image `(H, W)` in 0..255; the mask `(H, W)` in {0, 1}; and the metadata, in pixels of
        the image: `marker` `(x, y)`, `target` and `rival` `(n, 4)` with a row `tail_x,
        tail_y, head_x, head_y` for each dash, `distractors` (a list of such arrays), and
        `contours_tried`.

    Raises:
        ValueError: for a negative seed or index.
        DatasetError: if the config leaves no room for its contours.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed={seed} and index={index} must not be negative.")
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    blocks = iter(lambda: random.random(256).tolist(), None)
    scene = grow_scene(config, chain.from_iterable(blocks).__next__)
    others = [*scene.rival, *chain.from_iterable(scene.distractors)]
    image, mask = draw(config, scene.target, others)

    scale = config.image_size / config.size

    def ends(contour: list[Dash]) -> np.ndarray:
        return np.asarray(contour)[:, 2:] * scale

    target = ends(scene.target)
    metadata = {
        "marker": (float(target[0, 0]), float(target[0, 1])),
        "target": target,
        "rival": ends(scene.rival),
        "distractors": [ends(contour) for contour in scene.distractors],
        "contours_tried": scene.contours_tried,
    }
    return image, mask, metadata
