"""Segments over their image, and panels side by side, in pictures of bounded size.

Shape shorthand: pictures are `(H, W, 3)` RGB, uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from crbp_d2.evaluation.colours import Colour, Info, Map, ObjectColours, indexed

Pixels = npt.NDArray[np.uint8]
Panel = tuple[str, Pixels]
"""Title and picture."""
_Box = tuple[int, int, int, int]

MINIMUM_SIDE = 384
"""Smaller images are enlarged, so that the labels drawn on them can be read."""
LONGEST_SIDE = 1024
"""No panel is longer: larger images are reduced, and thin ones are not enlarged beyond it."""
GAP = 8
"""Pixels between panels."""
MOST_LABELS = 20
"""Of more objects only the largest of each class is labelled, as labels would cover them."""
OPACITY_OF_THINGS, OPACITY_OF_STUFF = 0.55, 0.45


def drawn_size(height: int, width: int, longest: int | None = None) -> tuple[int, int]:
    """Height and width at which an image is drawn, each at least 1.

    Args:
        height, width: of the image.
        longest: of the drawn sides, `LONGEST_SIDE` by default.
    """
    bound = (longest or LONGEST_SIDE) / max(height, width)
    factor = min(max(1, MINIMUM_SIDE / min(height, width)), bound)
    return max(1, round(height * factor)), max(1, round(width * factor))


def scaled(image: npt.NDArray[Any], longest: int | None = None) -> npt.NDArray[Any]:
    """An image `(H, W)` or `(H, W, C)` at its `drawn_size`."""
    height, width = drawn_size(image.shape[0], image.shape[1], longest)
    if (height, width) == image.shape[:2]:
        return image
    smaller = height < image.shape[0] or width < image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=how)


def draw_segments(
    image: Pixels,
    segments: Map,
    infos: Sequence[Info] | None,
    metadata: Any,
    colours: ObjectColours,
    longest: int | None = None,
) -> Pixels:
    """An image with its segments over it in grey: filled, objects outlined, named where there is
    room. Pixels without a segment keep their own colour.

    Args:
        image: of any size.
        segments: segment ids, of any size, 0 where there is none.
        infos: per segment `id`, `isthing` and contiguous `category_id`; if known also `score` and
            `iscrowd`.
        metadata: of the data set, with class names.
        colours: of all pictures of this image.
        longest: see `drawn_size`.

    Returns:
        Of the size of `scaled(image, longest)`.
    """
    large = scaled(image, longest)
    height, width = large.shape[:2]
    # The thing class that stands in where data have no things never occurs; see PanopticEvaluator.
    no_things = metadata.get("thing_dataset_id_to_contiguous_id") == {}
    infos = [info for info in infos or () if not (no_things and info["isthing"])]
    map_ = np.asarray(
        cv2.resize(segments.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST),
        dtype=np.int32,
    )
    colour_of = colours.of(map_, infos)
    chosen = [colour_of[info["id"]] for info in infos]
    isthing = np.array([False, *(bool(info["isthing"]) for info in infos)])
    # Entry 0 is for pixels without a segment.
    palette = np.array([(0, 0, 0), *chosen], np.float32)
    opacity = np.where(isthing, OPACITY_OF_THINGS, OPACITY_OF_STUFF)
    opacity[0] = 0
    places = indexed(map_, [info["id"] for info in infos])
    outline = _inner_edge(places) & isthing[places]
    cover = np.where(outline, 1, opacity[places])[..., None].astype(np.float32)
    # Colours over colours would be others from place to place; the image itself stands beside.
    grey = cv2.cvtColor(cv2.cvtColor(large, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    ground = np.where(places[..., None] > 0, grey, large).astype(np.float32)
    picture = np.round(ground + cover * (palette[places] - ground)).astype(np.uint8)
    return _write_labels(picture, places, infos, chosen, metadata)


def _inner_edge(places: Map) -> npt.NDArray[np.bool_]:
    """Pixels beside those of another segment; several deep in large pictures."""
    edge = np.zeros(places.shape, np.uint8)
    down, across = np.diff(places, axis=0) != 0, np.diff(places, axis=1) != 0
    for part, differs in (
        (edge[:-1], down),
        (edge[1:], down),
        (edge[:, :-1], across),
        (edge[:, 1:], across),
    ):
        part |= differs
    depth = max(places.shape) // 600
    if depth:
        return cv2.dilate(edge, np.ones((2 * depth + 1, 2 * depth + 1), np.uint8)) > 0
    return edge > 0


def _write_labels(
    picture: Pixels, places: Map, infos: Sequence[Info], colours: Sequence[Colour], metadata: Any
) -> Pixels:
    """The picture with the names of its segments, the largest first, each where there is room."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    face = font(round(min(max(11, 0.022 * max(image.size)), 18)))
    isthing = np.array([False, *(bool(info["isthing"]) for info in infos)])
    areas = np.bincount(places.ravel(), minlength=len(infos) + 1)
    bounds = ndimage.find_objects(places, max_label=len(infos))
    crowded = isthing.sum() > MOST_LABELS
    taken: list[_Box] = []
    labelled: set[int] = set()
    for place in np.argsort(-areas[1:], kind="stable") + 1:
        info, bound = infos[place - 1], bounds[place - 1]
        if bound is None or (crowded and isthing[place] and info["category_id"] in labelled):
            continue
        text = _text(info, metadata)
        left, top, right, bottom = map(round, draw.textbbox((0, 0), text, face))
        width, height = right - left + 6, bottom - top + 4
        if width > image.width or height > image.height:
            continue
        small = areas[place] < 2.5 * width * height
        column, row = _deepest(places, place, bound)
        x = min(max(column - width // 2, 0), image.width - width)
        y = bound[0].start - height - 1 if small else row - height // 2
        y = min(max(y, 0), image.height - height)
        box = (x, y, x + width, y + height)
        below = places[y : y + height, x : x + width]
        covers = small and bool((isthing[below] & (below != place)).any())
        if covers or any(_meet(box, other) for other in taken):
            continue
        taken.append(box)
        if isthing[place]:
            labelled.add(info["category_id"])
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(0, 0, 0, 170))
        light = tuple(round(255 - 0.4 * (255 - channel)) for channel in colours[place - 1])
        draw.text((x + 3 - left, y + 2 - top), text, light, face)
    return np.asarray(image)


def _deepest(places: Map, place: int, bound: tuple[slice, slice]) -> tuple[int, int]:
    """Column and row of the pixel of a segment farthest from its edges: inside it, where its middle
    may not be."""
    inside = np.pad((places[bound] == place).astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(column) - 1 + bound[1].start, int(row) - 1 + bound[0].start


def _text(info: Info, metadata: Any) -> str:
    names = metadata.thing_classes if info["isthing"] else metadata.stuff_classes
    score = f" {100 * info['score']:.0f}%" if "score" in info else ""
    return f"{names[info['category_id']]}{score}{' (crowd)' if info.get('iscrowd') else ''}"


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """That of figures, in pixels."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def side_by_side(panels: Sequence[Panel]) -> Pixels:
    """Panels in a row, each under its title; a title that is too long is cut.

    Args:
        panels: titles and pictures of the same height.

    Returns:
        `(H + strip, sum of W + gaps, 3)`, on white.
    """
    height = panels[0][1].shape[0]
    strip = title_height(height)
    width = sum(image.shape[1] for _, image in panels) + GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, height + strip), "white")
    draw = ImageDraw.Draw(sheet)
    face = font(round(0.6 * strip))
    left = 0
    for title, image in panels:
        sheet.paste(Image.fromarray(image), (left, strip))
        shown = title
        while shown and draw.textlength(shown, face) > image.shape[1] - 2 * GAP:
            shown = f"{shown.rstrip('…')[:-1]}…" if len(shown) > 2 else ""
        draw.text((left + GAP, strip // 2), shown, "black", face, anchor="lm")
        left += image.shape[1] + GAP
    return np.asarray(sheet)


def title_height(height: int) -> int:
    """Pixels of the title strip over panels of a height."""
    return max(32, height // 16)
