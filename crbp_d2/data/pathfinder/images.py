"""Registered Pathfinder data sets, drawn on the fly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.utils.data import Dataset

from .config import PathfinderConfig, preset

Record = dict[str, Any]

STUFF_CLASSES = ("background", "contour")
IGNORE_LABEL = 255
EVALUATOR_TYPE = "pathfinder"

SEEDS = {"train": 1, "val": 2, "test": 3}
# What the authors train and test on: iterations of 128 images an epoch; 10 000 test images.
TRAINING_IMAGES = {length: 1484 * 128 for length in (6, 9, 14, 20)} | {25: 1436 * 128}
HELD_OUT_IMAGES = {"val": 2000, "test": 10_000}
TRAINED_AT = 150
QUICK_IMAGES = {"train": 20_000, "val": 256, "test": 1024}


def resolve(config: str | PathfinderConfig) -> PathfinderConfig:
    """A config, given itself or by the name of a preset."""
    return preset(config) if isinstance(config, str) else config


class PathfinderImages(Dataset[Record]):
    """Records of images that are drawn when they are mapped. Nothing is stored.

    A record holds `preset` (a name or a config), `seed`, `index`, `image_id`, `height`, `width`.
    Any index of at least 0 gives a record: those past the length are fresh images.

    Args:
        config: a `PathfinderConfig` or the name of a preset.
        seed: of the stream of images.
        size: images in an epoch.

    Raises:
        ValueError: `size` is not positive, or the preset is unknown.
    """

    def __init__(self, config: str | PathfinderConfig, *, seed: int, size: int) -> None:
        if size <= 0:
            raise ValueError(f"size={size}: a data set needs at least one image")
        self.config = config
        self.seed = seed
        self.size = size
        self.image_size = resolve(config).image_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if index < 0:
            raise IndexError(f"index {index} is negative")
        return {
            "preset": self.config,
            "seed": self.seed,
            "index": index,
            "image_id": index,
            "height": self.image_size,
            "width": self.image_size,
        }

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(self.size))


def set_pathfinder_metadata(name: str, **more: Any) -> None:
    """Classes and evaluator of a Pathfinder data set."""
    MetadataCatalog.get(name).set(
        evaluator_type=EVALUATOR_TYPE,
        stuff_classes=list(STUFF_CLASSES),
        ignore_label=IGNORE_LABEL,
        **more,
    )


def register_pathfinder(name: str, config: str | PathfinderConfig, *, seed: int, size: int) -> None:
    """Register `size` drawn images as the data set `name`; see `PathfinderImages`."""
    images = PathfinderImages(config, seed=seed, size=size)
    DatasetCatalog.register(name, lambda: images)
    set_pathfinder_metadata(name)


def _register_presets() -> None:
    for split, seed in SEEDS.items():
        for length, training_images in TRAINING_IMAGES.items():
            register_pathfinder(
                f"pathfinder_{length}_{split}",
                f"{length}@{TRAINED_AT}",
                seed=seed,
                size=training_images if split == "train" else HELD_OUT_IMAGES[split],
            )
        for name in ("small", "tiny"):
            register_pathfinder(
                f"pathfinder_{name}_{split}", name, seed=seed, size=QUICK_IMAGES[split]
            )


_register_presets()
