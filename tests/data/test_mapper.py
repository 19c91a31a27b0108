"""The mapper: random crops that keep every pixel of every mask, with and without instances."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import polygons_to_bitmask
from detectron2.utils.events import EventStorage
from panopticapi.utils import rgb2id
from PIL import Image

from crbp_d2.config import add_crbp_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import PanopticMapper, build_train_loader, register_panoptic
from crbp_d2.data.augmentations import PixelCrop, RandomPixelCrop
from tests.evaluation.models import tiny_config

from . import mixed_data
from .mixed_data import registered, write_mixed
from .panoptic_data import CUP, DOG, write_panoptic
from .real_data import needs_real_data, real_arguments


def cropping(mask_format: str, size: tuple[float, float], kind: str = "relative") -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = kind
    cfg.INPUT.CROP.SIZE = list(size)
    return cfg


class RememberingCrop(RandomPixelCrop):
    """Tells where the last crop was."""

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None = None) -> PixelCrop:
        crop = super().get_transform(image, sem_seg)
        self.window = np.s_[crop.y0 : crop.y0 + crop.h, crop.x0 : crop.x0 + crop.w]
        return crop


def unscaled(cfg: CfgNode) -> tuple[PanopticMapper, RememberingCrop]:
    """A mapper that does nothing but crop, and its crop."""
    mapper = PanopticMapper(cfg, is_train=True)
    crop = mapper.augmentations.augs[0]
    assert isinstance(crop, RandomPixelCrop)
    mapper.augmentations.augs = [RememberingCrop(crop.crop_type, crop.crop_size)]
    return mapper, mapper.augmentations.augs[0]


def masks(mapped: dict[str, Any]) -> np.ndarray:
    """(instances, height, width)."""
    found, shape = mapped["instances"].gt_masks, mapped["image"].shape[1:]
    if hasattr(found, "polygons"):
        return np.array([polygons_to_bitmask(one, *shape) for one in found.polygons])
    return found.tensor.numpy()


def check(mapped: dict[str, Any], expected: list[np.ndarray]) -> None:
    """The masks that something is left of, and their boxes."""
    kept = [mask for mask in expected if mask.any()]
    actual = masks(mapped)
    assert len(actual) == len(kept)
    for one, other in zip(actual, kept, strict=True):
        np.testing.assert_array_equal(one, other)
    for box, mask in zip(mapped["instances"].gt_boxes.tensor.tolist(), kept, strict=True):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_crops_keep_holes_in_either_format(
    tmp_path: Path, request: pytest.FixtureRequest, mask_format: str
) -> None:
    data = write_panoptic(tmp_path / "data")
    register_panoptic(request.node.name, **data.arguments())
    record = DatasetCatalog.get(request.node.name)[0]
    ids = rgb2id(np.array(Image.open(data.pngs / "0.png")))
    mapper, _ = unscaled(cropping(mask_format, (1.0, 1.0)))
    # The dog has a hole of 25 pixels and is covered by the cup in as many.
    assert [int(mask.sum()) for mask in masks(mapper(record))] == [350, 80]
    mapper, crop = unscaled(cropping(mask_format, (0.5, 0.6)))
    np.random.seed(0)
    for _ in range(20):
        mapped = mapper(record)
        check(mapped, [(ids == value)[crop.window] for value in (DOG, CUP)])
        stuff = np.array(Image.open(record["sem_seg_file_name"]))[crop.window]
        np.testing.assert_array_equal(mapped["sem_seg"].numpy(), stuff)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_crops_of_images_of_any_size(tmp_path: Path, mask_format: str) -> None:
    written = write_mixed(tmp_path, ((96, 61), (57, 140), (9, 200), (200, 9)))
    with registered(f"crops of any size {mask_format}", written.arguments()) as name:
        np.random.seed(1)
        for kind, size in (("relative_range", (0.1, 0.1)), ("absolute", (40, 30))):
            mapper, crop = unscaled(cropping(mask_format, size, kind))
            for number, record in enumerate(DatasetCatalog.get(name)):
                ids = rgb2id(np.array(Image.open(written.pngs / f"{number}.png")))
                mapped = mapper(record)
                check(
                    mapped,
                    [(ids == value)[crop.window] for value in (mixed_data.DOG, mixed_data.CUP)],
                )


@needs_real_data
@pytest.mark.parametrize("source", ["nuclei", "coco"])
def test_crops_of_real_images(tmp_path: Path, source: str) -> None:
    with registered(f"crops of {source}", real_arguments(source, tmp_path, images=4)) as name:
        mapper, crop = unscaled(cropping("polygon", (0.5, 0.5)))
        np.random.seed(2)
        for record in DatasetCatalog.get(name):
            mapped = mapper(record)
            kept = [one["segmentation"] for one in record["annotations"] if not one["iscrowd"]]
            shape = (record["height"], record["width"])
            whole = [polygons_to_bitmask(list(map(np.array, one)), *shape) for one in kept]
            check(mapped, [mask[crop.window] for mask in whole])


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("crowd", [False, True])
def test_images_without_instances_are_cropped(
    tmp_path: Path, request: pytest.FixtureRequest, mask_format: str, crowd: bool
) -> None:
    data = write_panoptic(tmp_path / "data")
    register_panoptic(request.node.name, **data.arguments())
    record = DatasetCatalog.get(request.node.name)[0]
    kept = [one for one in record["annotations"] if crowd and one["iscrowd"]]
    assert len(kept) == crowd
    mapper = PanopticMapper(cropping(mask_format, (0.5, 0.5)), is_train=True)
    mapped = mapper({**record, "annotations": kept})
    assert len(mapped["instances"]) == 0
    assert mapped["sem_seg"].shape == mapped["image"].shape[1:]


def test_boxes_are_cropped_without_masks(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    register_panoptic(request.node.name, **write_panoptic(tmp_path / "data").arguments())
    record = DatasetCatalog.get(request.node.name)[0]
    cfg = cropping("polygon", (1.0, 1.0))
    cfg.MODEL.MASK_ON = False
    mapper, _ = unscaled(cfg)
    mapped = mapper(record)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[5, 10, 25, 30], [20, 25, 28, 35]]


@pytest.mark.parametrize("things", [True, False])
def test_training_with_crops(tmp_path: Path, request: pytest.FixtureRequest, things: bool) -> None:
    data = write_panoptic(tmp_path / "data", things=things)
    name = request.node.name
    register_panoptic(name, **data.arguments())
    cfg = tiny_config(name)
    add_crbp_config(cfg)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.5, 0.5]
    torch.manual_seed(0)
    for seed in (-1, 0):
        cfg.SEED = seed
        batch = next(iter(build_train_loader(cfg)))
        with EventStorage():
            losses = build_model(cfg)(batch)
        assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("half", (0.5, 0.5), "INPUT.CROP.TYPE is 'half'; choose from relative, relative_range"),
        ("relative", (0.0, 0.5), "INPUT.CROP.SIZE is .* it must be two numbers above 0, at most 1"),
        ("relative_range", (0.5, 1.5), "two numbers above 0, at most 1"),
        ("relative", (0.5,), "two numbers above 0, at most 1"),
        ("absolute", (0.5, 0.5), "two whole numbers above 0"),
        ("absolute_range", (50, 40), "two whole numbers above 0, the lower first"),
    ],
)
def test_impossible_crops_are_refused(kind: str, size: tuple, message: str) -> None:
    cfg = cropping("polygon", size, kind)
    with pytest.raises(ConfigurationError, match=message):
        PanopticMapper(cfg, is_train=True)
    PanopticMapper(cfg, is_train=False)


def test_thin_crops_have_a_pixel() -> None:
    crop = RandomPixelCrop("relative", [0.1, 0.1]).get_transform(np.zeros((40, 1, 3)))
    assert (crop.w, crop.h) == (1, 4)


@pytest.mark.parametrize("labelled", [(0, 0), (39, 59), (20, 7)])
def test_crops_have_a_labelled_pixel(labelled: tuple[int, int]) -> None:
    image, sem_seg = np.zeros((40, 60, 3)), np.full((40, 60), 255)
    sem_seg[labelled] = 1
    random_crop = RandomPixelCrop("absolute", [10, 12])
    np.random.seed(0)
    for _ in range(20):
        crop = random_crop.get_transform(image, sem_seg)
        assert crop.apply_image(image).shape == (10, 12, 3)
        assert (crop.apply_segmentation(sem_seg) == 1).sum() == 1
    # Nothing is to be found, or nothing is known.
    for labels in (np.full((40, 60), 255), None):
        assert random_crop.get_transform(image, labels).w == 12
