"""Turned and coloured images: masks, boxes and semantic map go with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import AugInput
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from crbp_d2.config import add_crbp_config
from crbp_d2.data import PanopticMapper
from crbp_d2.data.augmentations import (
    PixelRotation,
    RandomOrderedSaturation,
    RandomPixelRotation,
)
from crbp_d2.data.sampler import build_resumable_train_loader, seek
from tests.evaluation.models import tiny_config

from .mixed_data import registered, write_mixed
from .test_mapper import masks

THINGS = 0
OUTSIDE = 255
FORMATS = pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])


@pytest.fixture
def records(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """Images of 61 x 96 and of 140 x 57 pixels with a dog and a cup, before sky and road."""
    written = write_mixed(tmp_path / "data", ((61, 96), (140, 57)))
    with registered(request.node.name, written.arguments()) as name:
        yield DatasetCatalog.get(name)


def configured(*overrides: object, mask_format: str = "polygon") -> CfgNode:
    cfg = get_cfg()
    add_crbp_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MASK_FORMAT = mask_format
    # Images stay as large as they are.
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.merge_from_list(list(overrides))
    return cfg


def turning(*angles: float, mask_format: str = "polygon") -> PanopticMapper:
    cfg = configured(
        *("INPUT.RANDOM_ROTATION", angles, "INPUT.RANDOM_ROTATION_SAMPLING", "choice"),
        mask_format=mask_format,
    )
    return PanopticMapper(cfg, is_train=True)


def check_boxes(mapped: dict[str, Any]) -> None:
    """Boxes are around the pixels of the masks, to a pixel, and inside the image."""
    height, width = mapped["image"].shape[1:]
    boxes = mapped["instances"].gt_boxes.tensor.numpy()
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    for box, mask in zip(boxes, masks(mapped), strict=True):
        rows, columns = np.nonzero(mask)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, around, atol=1)


@FORMATS
@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3), (-90, 3)])
def test_at_right_angles_every_pixel_turns(
    records: list, mask_format: str, angle: float, turns: int
) -> None:
    before, after = (turning(one, mask_format=mask_format) for one in (0, angle))
    for record in records:
        plain, turned = before(record), after(record)
        assert len(masks(turned)) == 2
        for one, other in zip(masks(turned), masks(plain), strict=True):
            np.testing.assert_array_equal(one, np.rot90(other, turns))
        for key, axes in (("sem_seg", (0, 1)), ("image", (1, 2))):
            expected = np.rot90(plain[key].numpy(), turns, axes)
            np.testing.assert_array_equal(turned[key].numpy(), expected)
        assert turned["instances"].gt_classes.tolist() == plain["instances"].gt_classes.tolist()
        check_boxes(turned)


@FORMATS
@pytest.mark.parametrize("angle", [20, -35.5, 100])
def test_at_other_angles_masks_and_semantic_map_turn_together(
    records: list, mask_format: str, angle: float
) -> None:
    before, after = (turning(one, mask_format=mask_format) for one in (0, angle))
    for record in records:
        plain, turned = before(record), after(record)
        assert turned["image"].shape == plain["image"].shape
        stuff = turned["sem_seg"].numpy()
        rotation = PixelRotation(*stuff.shape, float(angle), expand=False)
        for mask, other in zip(masks(turned), masks(plain), strict=True):
            expected = rotation.apply_segmentation(other.astype(np.uint8)) > 0
            assert expected.any()
            assert (mask & expected).sum() / (mask | expected).sum() > 0.9
        # The borders, which are rounded each in its own way, aside.
        objects = masks(turned).any(axis=0)
        assert ((stuff == THINGS) != objects).mean() < 0.02
        check_boxes(turned)


@FORMATS
def test_what_comes_from_outside_is_unlabelled_black_and_no_object(
    records: list, mask_format: str
) -> None:
    for record in records:
        turned = turning(45, mask_format=mask_format)(record)
        stuff, image = turned["sem_seg"].numpy(), turned["image"].numpy()
        corners = np.ix_([0, -1], [0, -1])
        assert (stuff[corners] == OUTSIDE).all()
        assert not image[:, [0, -1], 0].any()
        assert set(np.unique(stuff)) == {THINGS, 1, 2, OUTSIDE}
        outside = ~PixelRotation(*stuff.shape, 45.0, expand=False).inside()
        np.testing.assert_array_equal(stuff == OUTSIDE, outside)
        assert (masks(turned).any(axis=0) & outside).sum() <= 0.02 * outside.sum()


@FORMATS
def test_an_object_that_leaves_the_image_vanishes(records: list, mask_format: str) -> None:
    record = {**records[1], "annotations": [dict(one) for one in records[1]["annotations"]]}
    # In the upper corner of an image of 140 x 57 pixels.
    record["annotations"][0]["segmentation"] = [[1.0, 1.0, 9.0, 1.0, 9.0, 7.0, 1.0, 7.0]]
    record["annotations"][0]["bbox"] = [1, 1, 8, 6]
    kept = record["annotations"][1]["category_id"]
    turned = turning(90.5, mask_format=mask_format)(record)
    assert turned["instances"].gt_classes.tolist() == [kept]
    assert masks(turned).any(axis=(1, 2)).all()
    check_boxes(turned)


def _square(start: float, end: float) -> list[list[float]]:
    return [[start, start], [end, start], [end, end], [start, end]]


def test_a_turn_keeps_the_holes_of_masks_that_it_cuts() -> None:
    outer, hole = (np.array(square) for square in (_square(0, 30), _square(10, 20)))
    ring = [np.concatenate([outer, outer[:1], hole, hole[:1], outer[:1]])]
    rotation = PixelRotation(30, 40, 30.0, expand=False)
    flat = [one.reshape(-1).tolist() for one in rotation.apply_polygons(ring)]
    turned = mask_util.decode(mask_util.merge(mask_util.frPyObjects(flat, 30, 40)))
    whole = np.zeros((30, 40), dtype=np.uint8)
    whole[:, :30] = 1
    whole[10:20, 10:20] = 0
    expected = rotation.apply_segmentation(whole)
    assert abs(int(turned.sum()) - int(expected.sum())) < 0.05 * expected.sum()
    assert (turned != expected).mean() < 0.05


def test_run_lengths_turn_without_a_frame_of_pixels(records: list) -> None:
    """As other registrations have them: what comes from outside belongs to no mask."""
    record = {**records[0], "annotations": [dict(one) for one in records[0]["annotations"]]}
    for one in record["annotations"]:
        polygons = mask_util.frPyObjects(one["segmentation"], 61, 96)
        one["segmentation"] = mask_util.merge(polygons)
    from_run_lengths, from_polygons = (
        turning(25, mask_format="bitmask")(one) for one in (record, records[0])
    )
    for one, other in zip(masks(from_run_lengths), masks(from_polygons), strict=True):
        assert (one & other).sum() / (one | other).sum() > 0.9


def test_a_turn_leaves_a_labelled_pixel_or_nothing_is_turned() -> None:
    image, stuff = np.zeros((40, 60, 3), dtype=np.uint8), np.full((40, 60), OUTSIDE, np.uint8)
    stuff[0, 0] = 1
    seen = AugInput(image, sem_seg=stuff)
    RandomPixelRotation([45.0], sample_style="choice")(seen)
    assert seen.sem_seg[0, 0] == 1
    stuff[20, 30] = 1
    seen = AugInput(image, sem_seg=stuff)
    RandomPixelRotation([45.0], sample_style="choice")(seen)
    assert (seen.sem_seg == 1).sum() >= 1 and seen.sem_seg[0, 0] == OUTSIDE


def test_grey_images_keep_their_channel() -> None:
    image = np.arange(12 * 17, dtype=np.uint8).reshape(12, 17, 1)
    assert PixelRotation(12, 17, 90.0).apply_image(image).shape == (17, 12, 1)
    assert PixelRotation(12, 17, 10.0, expand=False).apply_image(image).shape == (12, 17, 1)


def test_colours_leave_masks_and_maps_as_they_are(records: list) -> None:
    plain = PanopticMapper(configured(), is_train=True)(records[0])
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        cfg = configured(f"INPUT.RANDOM_{name}", (1.5, 1.6))
        changed = PanopticMapper(cfg, is_train=True)(records[0])
        assert (changed["image"] != plain["image"]).float().mean() > 0.5
        assert torch.equal(changed["sem_seg"], plain["sem_seg"])
        np.testing.assert_array_equal(masks(changed), masks(plain))


def test_saturation_is_the_same_in_either_order_of_channels(records: list) -> None:
    mapped = {}
    for order in ("RGB", "BGR"):
        cfg = configured("INPUT.RANDOM_SATURATION", (0.0, 0.0), "INPUT.FORMAT", order)
        mapped[order] = PanopticMapper(cfg, is_train=True)(records[0])["image"].numpy()
    np.testing.assert_array_equal(mapped["RGB"], mapped["BGR"])
    with Image.open(records[0]["file_name"]) as image:
        grey = np.asarray(image.convert("L")).astype(int)
    assert abs(mapped["BGR"] - grey).max() <= 1


def test_an_augmentation_tells_its_settings_to_the_log() -> None:
    assert "image_format='BGR'" in repr(RandomOrderedSaturation(0.5, 1.5, "BGR"))
    assert "[-5.0, 5.0]" in repr(RandomPixelRotation([-5.0, 5.0]))


def test_test_images_stay_as_they_are(records: list) -> None:
    cfg = configured("INPUT.RANDOM_ROTATION", (90, 90), "INPUT.RANDOM_BRIGHTNESS", (0.0, 0.0))
    cfg.INPUT.MIN_SIZE_TEST = 0
    image = PanopticMapper(cfg, is_train=False)(records[0])["image"]
    assert image.shape == (3, 61, 96) and image.any()


def test_a_config_without_the_keys_adds_nothing() -> None:
    plain = get_cfg()
    augmentations = PanopticMapper(plain, is_train=True).augmentations.augs
    assert [type(one).__name__ for one in augmentations] == ["ResizeShortestEdge", "RandomFlip"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_repeated_and_continued_bit_by_bit(records: list, workers: int) -> None:
    cfg = configured(
        *("INPUT.RANDOM_ROTATION", (-30, 30), "INPUT.RANDOM_BRIGHTNESS", (0.5, 1.5)),
        *("INPUT.RANDOM_CONTRAST", (0.5, 1.5), "INPUT.RANDOM_SATURATION", (0.5, 1.5)),
    )

    def stream(start: int, workers: int) -> list[torch.Tensor]:
        loader = build_resumable_train_loader(
            records,
            mapper=PanopticMapper(cfg, is_train=True),
            total_batch_size=2,
            seed=7,
            num_workers=workers,
        )
        seek(loader, start)
        batches = iter(loader)
        return [one["image"] for _ in range(4 - start) for one in next(batches)]

    whole, rest = stream(0, 0), stream(2, workers)
    assert all(torch.equal(one, other) for one, other in zip(whole[4:], rest, strict=True))
    assert not any(torch.equal(one, other) for one in whole[:4] for other in whole[4:])


@FORMATS
def test_a_training_with_all_of_them_has_finite_losses(
    records: list, mask_format: str, request: pytest.FixtureRequest
) -> None:
    cfg = tiny_config(request.node.name)
    add_crbp_config(cfg)
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.RANDOM_ROTATION = (-180, 180)
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        cfg.INPUT[f"RANDOM_{name}"] = (0.5, 1.5)
    np.random.seed(0)
    torch.manual_seed(0)
    mapper = PanopticMapper(cfg, is_train=True)
    with EventStorage():
        losses = build_model(cfg)([mapper(record) for record in records])
    assert all(torch.isfinite(loss) for loss in losses.values())
