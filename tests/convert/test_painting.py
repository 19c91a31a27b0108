"""What lies above what, and what is counted."""

import numpy as np
import pytest

from crbp_d2.data.convert import Shape
from crbp_d2.data.convert.paint import Tally, paint

WIDTH, HEIGHT = 30, 20
CATEGORIES = {
    "window": {"id": 4, "name": "window", "isthing": 1},
    "car": {"id": 2, "name": "car", "isthing": 1},
    "wall": {"id": 9, "name": "wall", "isthing": 0},
    "sky": {"id": 1, "name": "sky", "isthing": 0},
}


def box(category: str, left: int, top: int, width: int, height: int, **more: bool) -> Shape:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return Shape.cut(f"{category} at {left}", category, mask, **more)


def painted(*shapes: Shape, **options: object) -> tuple[np.ndarray, Tally]:
    """The ids of categories in the place of those of segments."""
    ids, tally = paint(shapes, (WIDTH, HEIGHT), CATEGORIES, **options)
    categories = np.zeros(ids.max() + 1, dtype=int)
    for segment in tally.segments:
        categories[segment["id"]] = segment["category_id"]
    return categories[ids], tally


@pytest.mark.parametrize("first", [0, 1])
def test_smaller_shapes_lie_above_larger_ones(first: int) -> None:
    shapes = [box("window", 5, 5, 4, 4), box("wall", 0, 0, 20, 20)]
    ids, tally = painted(*shapes[:: 1 - 2 * first])
    assert (ids[5:9, 5:9] == 4).all() and (ids[:, :20] == 9).sum() == 400 - 16
    assert (tally.twice, tally.unlabelled, tally.pixels) == (16, 200, 600)
    measured = {one["category_id"]: (one["area"], one["bbox"]) for one in tally.segments}
    assert measured == {9: (384, [0, 0, 20, 20]), 4: (16, [5, 5, 4, 4])}


def test_of_the_same_size_the_later_lies_above() -> None:
    ids, _ = painted(box("window", 5, 5, 4, 4), box("car", 7, 5, 4, 4))
    assert (ids[5:9, 7:11] == 2).all()


def test_classes_of_the_order_lie_above_others_and_one_another() -> None:
    shapes = [box("window", 5, 5, 4, 4), box("wall", 0, 0, 20, 20), box("car", 8, 0, 4, 20)]
    ids, tally = painted(*shapes, order=["car", "wall"])
    assert (ids[:, :20] == 9).all()
    assert tally.vanished == [("window at 5", "window"), ("car at 8", "car")]


def test_crowds_lie_below_larger_single_objects() -> None:
    ids, tally = painted(box("car", 0, 0, 5, 5, crowd=True), box("window", 4, 0, 10, 10))
    assert (ids[:10, 4:14] == 4).all()
    assert [segment["iscrowd"] for segment in tally.segments] == [1, 0]


def test_stuff_is_one_segment_and_no_crowd() -> None:
    shapes = [box("sky", 0, 0, 5, 5, crowd=True), box("sky", 3, 3, 9, 9), box("sky", 20, 0, 1, 1)]
    _, tally = painted(*shapes)
    (segment,) = tally.segments
    assert (segment["iscrowd"], segment["area"], segment["bbox"]) == (0, 103, [0, 0, 21, 12])
    assert tally.twice == 0


def test_gaps_join_the_stuff_that_fills_them() -> None:
    ids, tally = painted(box("sky", 0, 0, 5, 5), box("car", 9, 9, 2, 2), fill="sky")
    assert (ids == 1).sum() == 600 - 4 and len(tally.segments) == 2
    assert (tally.filled, tally.unlabelled) == (571, 0)
    _, tally = painted(box("car", 0, 0, WIDTH, HEIGHT), fill="sky")
    assert len(tally.segments) == 1 and tally.filled == 0


def test_shapes_without_pixel_are_told() -> None:
    _, tally = painted(box("car", 3, 3, 0, 0), box("sky", 0, 0, 2, 2))
    assert tally.empty == [("car at 3", "car")] and tally.vanished == []
