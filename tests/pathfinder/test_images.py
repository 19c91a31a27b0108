"""Registered data sets, through Detectron2's loaders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)

from crbp_d2.config import add_crbp_config
from crbp_d2.data.pathfinder import (
    TINY,
    PathfinderImages,
    PathfinderMapper,
    generate,
    preset,
    register_pathfinder,
)
from crbp_d2.data.sampler import build_resumable_train_loader, seeded_generators


def _batches(loader, count: int) -> list:
    return list(itertools.islice(loader, count))


def _config(**changes):
    cfg = get_cfg()
    add_crbp_config(cfg)
    cfg.DATASETS.TRAIN = ("pathfinder_tiny_train",)
    cfg.DATASETS.TEST = ("pathfinder_tiny_val",)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.RANDOM_FLIP = changes.get("flip", "horizontal")
    return cfg


def test_all_presets_are_registered_with_the_authors_numbers_of_images():
    sizes = {
        f"pathfinder_{length}_{split}": size
        for length in (6, 9, 14, 20, 25)
        for split, size in (("train", 183_808 if length == 25 else 189_952), ("test", 10_000))
    }
    for name, size in sizes.items():
        images = DatasetCatalog.get(name)
        assert len(images) == size and images[0]["height"] == images[0]["width"] == 150
    for kind in ("small", "tiny", 6, 9, 14, 20, 25):
        seeds = set()
        for split in ("train", "val", "test"):
            metadata = MetadataCatalog.get(f"pathfinder_{kind}_{split}")
            assert metadata.evaluator_type == "pathfinder" and metadata.ignore_label == 255
            assert metadata.stuff_classes == ["background", "contour"]
            seeds.add(DatasetCatalog.get(f"pathfinder_{kind}_{split}")[0]["seed"])
        assert len(seeds) == 3


def test_records_are_small_and_endless():
    images = PathfinderImages("tiny", seed=8, size=5)
    assert images[2] == {
        "preset": "tiny",
        "seed": 8,
        "index": 2,
        "image_id": 2,
        "height": 40,
        "width": 40,
    }
    assert [record["index"] for record in images] == [0, 1, 2, 3, 4]
    assert images[1000]["index"] == 1000
    with pytest.raises(IndexError):
        images[-1]
    with pytest.raises(ValueError, match="size=0"):
        PathfinderImages("tiny", seed=8, size=0)


def test_mapped_sample_is_the_generated_image():
    mapper = PathfinderMapper(is_train=False, transpose=True)
    sample = mapper(PathfinderImages(TINY, seed=8, size=5)[3])
    image, mask, _ = generate(TINY, 8, 3)
    assert sample["image"].dtype == torch.uint8 and sample["sem_seg"].dtype == torch.int64
    assert np.array_equal(sample["image"][0], image) and np.array_equal(sample["sem_seg"], mask)
    assert sample["height"] == sample["width"] == 40 and sample["image_id"] == 3


@pytest.mark.parametrize(("transpose", "views"), [(False, 4), (True, 8)])
def test_training_shows_all_flips_of_image_and_mask_together(transpose, views):
    mapper = PathfinderMapper(is_train=True, transpose=transpose)
    record = PathfinderImages("tiny", seed=8, size=5)[3]
    image, mask, _ = generate(TINY, 8, 3)
    expected = set()
    for pair in ((image, mask), (image.T, mask.T))[: views // 4]:
        for flips in itertools.product((1, -1), repeat=2):
            rows, columns = flips
            expected.add(tuple(part[::rows, ::columns].tobytes() for part in pair))
    assert len(expected) == views
    seen = set()
    with seeded_generators(0):
        for _ in range(80):
            sample = mapper(record)
            seg = sample["sem_seg"].numpy().astype(np.uint8)
            seen.add((sample["image"].numpy().tobytes(), seg.tobytes()))
    assert seen == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_detectron2_loaders_take_the_data_sets(workers):
    cfg = _config()
    cfg.DATALOADER.NUM_WORKERS = workers
    train = build_detection_train_loader(cfg, mapper=PathfinderMapper(cfg, is_train=True))
    samples = sum(_batches(train, 4), [])
    assert len(samples) == 16 == len({sample["index"] for sample in samples})
    assert all(sample["image"].shape == (1, 40, 40) for sample in samples)
    test = build_detection_test_loader(
        cfg, "pathfinder_tiny_val", mapper=PathfinderMapper(cfg, is_train=False)
    )
    assert len(test) == 256
    indices = [batch[0]["index"] for batch in _batches(test, 5)]
    assert indices == [0, 1, 2, 3, 4]


def test_flips_follow_the_config():
    assert PathfinderMapper(_config(), is_train=True).flip
    assert not PathfinderMapper(_config(flip="none"), is_train=True).flip
    assert PathfinderMapper(_config(), is_train=True, transpose=True).transpose
    cfg = _config()
    cfg.INPUT.TRANSPOSE = True
    assert PathfinderMapper(cfg, is_train=True).transpose


def test_resumed_training_sees_the_images_and_flips_of_an_uninterrupted_one():
    def batches(start: int, count: int, workers: int, endless: bool) -> list[tuple]:
        loader = build_resumable_train_loader(
            PathfinderImages("tiny", seed=1, size=6),
            mapper=PathfinderMapper(is_train=True, transpose=True),
            total_batch_size=4,
            seed=9,
            start_iteration=start,
            num_workers=workers,
            endless=endless,
        )
        return [
            tuple((sample["index"], sample["image"].numpy().tobytes()) for sample in batch)
            for batch in _batches(loader, count)
        ]

    for endless in (False, True):
        uninterrupted = batches(0, 6, 0, endless)
        assert batches(3, 3, 2, endless) == uninterrupted[3:]
        indices = [index for batch in uninterrupted for index, _ in batch]
        assert sorted(indices) == (list(range(24)) if endless else sorted(4 * [*range(6)]))
        # The same image comes in other flips in other epochs.
        views = {sample for batch in uninterrupted for sample in batch}
        assert len(views) == 24 if endless else 6 < len(views) <= 24


def test_a_config_of_ones_own_is_registered_in_a_line():
    register_pathfinder("pathfinder_own", preset("6@120"), seed=4, size=3)
    try:
        images = DatasetCatalog.get("pathfinder_own")
        sample = PathfinderMapper(is_train=False)(images[0])
        assert len(images) == 3 and sample["image"].shape == (1, 120, 120)
        assert MetadataCatalog.get("pathfinder_own").evaluator_type == "pathfinder"
    finally:
        DatasetCatalog.remove("pathfinder_own")
        MetadataCatalog.remove("pathfinder_own")
