"""From a mask to polygons that Detectron2 and pycocotools draw as exactly that mask.

Detectron2 reads instance masks as polygons unless `INPUT.MASK_FORMAT` says otherwise, so polygons
are what works without a setting. The usual `cv2.findContours` runs through the centres of the
border pixels (objects shrink by half a pixel all around) and fills holes. Here the outline runs
through the midpoints of the pixel edges, and a hole is joined to its outer outline by a bridge of
zero width, walked both ways, which an even-odd fill cancels.
"""

from __future__ import annotations

import cv2
import numpy as np

# Vertices are dropped while the outline moves by less than this many pixels. The centres of the
# border pixels lie at least 1 / (2 sqrt 2) = 0.35 from the outline; at 0.25 the drawn mask stays
# the same even with the rounding of pycocotools, which draws on a grid of a fifth of a pixel.
_TOLERANCE = 0.25
# In the outlines of a mask, and of all that are followed in an image: each takes 300 bytes and 40
# microseconds. An image of 500 x 500 pixels can't have more.
MAX_EDGES = 1_000_000


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Polygons `[x0, y0, x1, y1, ...]` of a mask, in pixels from the upper left image corner.

    Args:
        mask: (height, width) uint8, non-zero inside; not empty.

    Returns:
        One polygon for each connected part. The numbers are floats, for Detectron2 scales polygons
        in place, which would truncate integers.

    Raises:
        ValueError: the mask has more than `MAX_EDGES`, as noise has.
    """
    left, top, width, height = cv2.boundingRect(mask)
    cropped = mask[top : top + height, left : left + width]
    edges = count_edges(cropped)
    if edges > MAX_EDGES:
        raise ValueError(too_many(edges))
    # At twice the size each pixel edge has its own border pixels, so that a border point (X, Y)
    # stands for the pixel corner ((X + 1) // 2, (Y + 1) // 2).
    doubled = np.repeat(np.repeat(cropped, 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for index, contour in enumerate(contours):
        outline = _edge_midpoints(contour[:, 0, :]) + np.array([left, top], dtype=np.float64)
        parent = int(hierarchy[0][index][3])
        if parent < 0:
            outer[index] = outline
        else:
            holes.setdefault(parent, []).append(outline)
    return [
        _with_holes(outline, holes.get(index, [])).reshape(-1).tolist()
        for index, outline in outer.items()
    ]


def count_edges(mask: np.ndarray) -> int:
    """The edges between a pixel inside a mask `(height, width)` and one outside."""
    inside = mask != 0
    return sum(int(np.count_nonzero(np.diff(inside, axis=axis))) for axis in (0, 1))


def too_many(edges: int) -> str:
    """What to say of an image or mask with more than `MAX_EDGES`."""
    return (
        f"outlines along {edges} edges of pixels, and at most {MAX_EDGES} are followed; smooth the "
        "masks, mark those of groups as iscrowd, or cut the image into tiles"
    )


def _edge_midpoints(border: np.ndarray) -> np.ndarray:
    """(n, 2) border points of the doubled mask to (m, 2) midpoints of pixel edges, m >= 4."""
    corners = (border + 1) // 2
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    midpoints = (corners + np.roll(corners, -1, axis=0)) / 2
    return cv2.approxPolyDP(midpoints.astype(np.float32)[:, None], _TOLERANCE, True)[:, 0]


def _with_holes(outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    start = outline[:1]
    parts = [outline]
    for hole in holes:
        parts += [start, hole, hole[:1], start]
    return np.concatenate(parts)
