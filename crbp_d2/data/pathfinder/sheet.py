"""Contact sheets: images, masks and what is what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from crbp_d2.data.files import absolute
from crbp_d2.data.storage import write_whole

from .config import PathfinderConfig
from .draw import Bytes, encoded_png
from .generator import generate

TILE = 300
GAP = 4
# Blue, green, red.
TARGET, RIVAL, DISTRACTOR, DOT = (60, 200, 60), (60, 60, 240), (200, 140, 60), (0, 220, 255)


def _enlarged(image: Bytes) -> Bytes:
    # Nearest neighbour: what is looked at are the pixels.
    factor = max(TILE // image.shape[0], 1)
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def _framed(image: Bytes) -> Bytes:
    return np.pad(image, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=96)


def _grey(image: Bytes) -> Bytes:
    return np.repeat(_enlarged(image)[..., None], 3, axis=2)


def _overlay(image: Bytes, mask: Bytes, metadata: dict[str, Any], dot_radius: float) -> Bytes:
    """The enlarged image with mask pixels raised and all centre lines drawn in colour."""
    overlay = _grey(image // np.uint8(2))
    overlay[_enlarged(mask) > 0] //= 2
    overlay[_enlarged(mask) > 0] += np.uint8(110)
    factor = overlay.shape[0] // image.shape[0]

    def point(x: float, y: float) -> tuple[int, int]:
        return int(x * factor), int(y * factor)

    lines = [(metadata["target"], TARGET), (metadata["rival"], RIVAL)]
    lines += [(contour, DISTRACTOR) for contour in metadata["distractors"]]
    for contour, colour in lines:
        for tail_x, tail_y, head_x, head_y in contour.tolist():
            cv2.line(overlay, point(tail_x, tail_y), point(head_x, head_y), colour)
    cv2.circle(overlay, point(*metadata["marker"]), round(dot_radius * factor) + 2, DOT)
    return overlay


def contact_sheet(config: PathfinderConfig, *, seed: int = 0, count: int = 4) -> Bytes:
    """Images above their masks above overlays, `(height, width, 3)`, in OpenCV's channel order.

    In the overlays the target is green with a yellow ring round its dot, the rival red, distractors
    blue, and mask pixels are grey. Small images are enlarged by a whole factor.
    """
    dot_radius = config.marker_radius * config.image_size / config.size
    columns = []
    for index in range(count):
        image, mask, metadata = generate(config, seed, index)
        overlay = _overlay(image, mask, metadata, dot_radius)
        tiles = (_grey(image), _grey(mask * np.uint8(255)), overlay)
        columns.append(np.vstack([_framed(tile) for tile in tiles]))
    return np.hstack(columns)


def write_contact_sheet(path: str | Path, config: PathfinderConfig, *, seed: int = 0) -> None:
    """Write a contact sheet of four images, whole or not at all.

    Args:
        path: of the PNG. Its folder is made if missing.

    Raises:
        ValueError: the name of the file does not end in .png.
    """
    path = absolute(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: a contact sheet is a PNG; give a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, encoded_png(contact_sheet(config, seed=seed)))
