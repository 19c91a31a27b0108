"""Polygons must redraw their mask exactly, holes and single pixels included."""

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data.transforms import HFlipTransform, ResizeTransform

from crbp_d2.data.outlines import mask_to_polygons


def drawn(polygons: list, height: int, width: int) -> np.ndarray:
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))


def random_mask(rng: np.random.Generator, smooth: bool) -> np.ndarray:
    if smooth:
        return (cv2.GaussianBlur(rng.random((60, 50)), (0, 0), rng.uniform(0.7, 4)) > 0.5) * 1
    return (rng.random((17, 23)) < rng.uniform(0.05, 1)) * 1


@pytest.mark.parametrize("smooth", [True, False])
def test_random_masks_are_redrawn_exactly(smooth: bool) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        mask = random_mask(rng, smooth).astype(np.uint8)
        if mask.any():
            np.testing.assert_array_equal(drawn(mask_to_polygons(mask), *mask.shape), mask)


def test_numbers_are_floats_within_the_box() -> None:
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[5:12, 7:20] = 1
    (polygon,) = mask_to_polygons(mask)
    assert all(type(value) is float for value in polygon)
    x, y = polygon[0::2], polygon[1::2]
    assert (min(x), min(y), max(x), max(y)) == (7, 5, 20, 12)


def test_holes_survive_scaling_and_flipping() -> None:
    mask = np.zeros((30, 40), dtype=np.uint8)
    cv2.circle(mask, (20, 15), 12, 1, -1)
    cv2.circle(mask, (20, 15), 6, 0, -1)
    (polygon,) = mask_to_polygons(mask)
    points = np.array(polygon).reshape(-1, 2)
    flipped = HFlipTransform(40).apply_coords(points.copy())
    scaled = ResizeTransform(30, 40, 90, 120).apply_coords(flipped)
    expected = cv2.resize(mask[:, ::-1], (120, 90), interpolation=cv2.INTER_NEAREST)
    actual = drawn([scaled.reshape(-1).tolist()], 90, 120)
    union = np.logical_or(actual, expected).sum()
    assert np.logical_and(actual, expected).sum() > 0.93 * union
    assert actual[45, 60] == 0
