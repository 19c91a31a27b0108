"""Drawing of dashes and dot, anti-aliased, and the reduction to the final image size."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from .config import PathfinderConfig
from .growth import Dash

Bytes = npt.NDArray[np.uint8]

# Shapes are drawn without anti-aliasing on a grid four times finer, placed to 1/16 of its pixels.
FINE = 4
FRACTION_BITS = 4
WHITE = 255
# The bicubic filter at half size. It reaches two pixels of the reduced image.
BICUBIC_HALF = np.array([[-3, -9, 29, 111, 111, 29, -9, -3]], np.float32).T / 256
BICUBIC_REACH = 2


def _to_grid(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Canvas coordinates to OpenCV's fixed-point ones, in which pixel centres are integers."""
    return np.rint((points * FINE - 0.5) * (1 << FRACTION_BITS)).astype(np.int32)


@functools.lru_cache(maxsize=32)
def _ends_to_corners(dash_length: float, thickness: float) -> npt.NDArray[np.float64]:
    """The linear map `(4, 8)` from tail and head of a dash to the corners of its rectangle."""
    # OpenCV paints the outline as well as the inside, half a pixel too much on every side. That is
    # taken back along the sides and left at the ends, where the authors' drawing adds as much: with
    # it the masks have their mean area.
    half = (thickness / 2 - 0.5 / FINE) / dash_length
    tail, head = np.eye(4)[:2], np.eye(4)[2:]
    across = half * np.array([tail[1] - head[1], head[0] - tail[0]])
    return np.concatenate([tail + across, head + across, head - across, tail - across]).T


def dash_corners(dashes: list[Dash], config: PathfinderConfig) -> list[npt.NDArray[np.int32]]:
    """Corners `(4, 2)` of every dash's rectangle on the fine grid."""
    ends = np.array(dashes)[:, 2:]
    corners = ends @ _ends_to_corners(config.dash_length, config.thickness)
    return list(_to_grid(corners).reshape(-1, 4, 2))


def fill_dashes(fine: Bytes, corners: list[npt.NDArray[np.int32]]) -> None:
    """Fill rectangles in white on the fine canvas `(4 * size, 4 * size)`.

    One call fills all by the even-odd rule, so they must not overlap; dashes never do.
    """
    if corners:
        cv2.fillPoly(fine, corners, [WHITE], cv2.LINE_8, FRACTION_BITS)


def fill_marker(fine: Bytes, marker: tuple[float, float], config: PathfinderConfig) -> None:
    """Fill the dot in white on the fine canvas."""
    centre = _to_grid(np.array(marker)).tolist()
    radius = round((config.marker_radius * FINE - 0.5) * (1 << FRACTION_BITS))
    if radius > 0:
        cv2.circle(fine, centre, radius, [WHITE], cv2.FILLED, cv2.LINE_8, FRACTION_BITS)


def average_down(fine: Bytes, left: int, top: int, right: int, bottom: int) -> Bytes:
    """Reduce the part of the fine canvas that covers the given canvas pixels; `(height, width)`.

    The mean over `4 x 4` pixels, in two halvings: OpenCV has a fast path for those alone.
    """
    part = fine[top * FINE : bottom * FINE, left * FINE : right * FINE]
    height, width = bottom - top, right - left
    half = cv2.resize(part, (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _halve_rows(image: Bytes) -> Bytes:
    # Sums of multiples of 1/256 are exact in float32, so adding less than that only makes OpenCV
    # round halves up, as Pillow does.
    filtered = cv2.filter2D(
        image,
        cv2.CV_8U,
        BICUBIC_HALF,
        anchor=(0, 3),
        delta=2.0**-10,
        borderType=cv2.BORDER_CONSTANT,
    )
    return np.asarray(filtered[::2], np.uint8)


def reduce_bicubic(image: Bytes, size: int, content: tuple[int, int, int, int]) -> Bytes:
    """Pillow's bicubic reduction of a square image, to the last bit.

    Args:
        image: `(S, S)`, zero outside of `content`.
        size: side of the result.
        content: `(left, top, right, bottom)` in pixels of `image`. Where `size` is half of `S` only
            the pixels that the content can reach are computed, by OpenCV, which takes less than
            half of Pillow's time.
    """
    left, top = (math.floor(edge / 2) - BICUBIC_REACH for edge in content[:2])
    right, bottom = (math.ceil(edge / 2) + BICUBIC_REACH for edge in content[2:])
    # Pillow weighs pixels at the border of the image in another way.
    inside = min(left, top) >= 0 and max(right, bottom) <= size
    if 2 * size != image.shape[0] or not inside:
        return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    part = image[2 * top : 2 * bottom, 2 * left : 2 * right]
    narrow = cv2.transpose(_halve_rows(np.asarray(cv2.transpose(part), np.uint8)))
    reduced = np.zeros((size, size), np.uint8)
    reduced[top:bottom, left:right] = _halve_rows(np.asarray(narrow, np.uint8))
    return reduced


def draw(config: PathfinderConfig, target: list[Dash], others: list[Dash]) -> tuple[Bytes, Bytes]:
    """Draw an image and its mask.

    Args:
        target: dashes of the marked contour, the marked one first, the dot on its tail.
        others: all other dashes.

    Returns:
        The image `(H, W)` in 0..255, white on black, and the mask `(H, W)` in {0, 1}.
    """
    size = config.size
    fine = np.zeros((size * FINE, size * FINE), np.uint8)
    corners = dash_corners([*target, *others], config)
    fill_dashes(fine, corners[: len(target)])
    fill_marker(fine, target[0][2:4], config)

    # The dot and the width of a dash reach beyond the ends of the centre lines.
    reach = max(config.marker_radius, config.thickness) + 1
    xs = [x for dash in target for x in (dash[2], dash[4])]
    ys = [y for dash in target for y in (dash[3], dash[5])]
    left, top = max(int(min(xs) - reach), 0), max(int(min(ys) - reach), 0)
    right, bottom = min(math.ceil(max(xs) + reach), size), min(math.ceil(max(ys) + reach), size)
    mask = np.zeros((size, size), np.uint8)
    covered = average_down(fine, left, top, right, bottom)
    mask[top:bottom, left:right] = covered > config.mask_threshold * WHITE

    fill_dashes(fine, corners[len(target) :])
    border = max(int(config.padding - reach), 0)
    inside = (border, border, size - border, size - border)
    image = np.zeros((size, size), np.uint8)
    image[border : size - border, border : size - border] = average_down(fine, *inside)
    if config.resize_to is not None:
        image = reduce_bicubic(image, config.resize_to, inside)
        smooth = reduce_bicubic(
            mask * np.uint8(WHITE), config.resize_to, (left, top, right, bottom)
        )
        mask = (smooth > config.resized_mask_threshold * WHITE).astype(np.uint8)
    return image, mask


def encoded_png(image: Bytes) -> bytes:
    """An image, `(H, W)` or `(H, W, 3)` in OpenCV's channel order, as the content of a PNG file."""
    encoded, content = cv2.imencode(".png", image)
    if not encoded:
        raise OSError("OpenCV can't encode PNG files; install an opencv-python-headless wheel")
    return content.tobytes()
