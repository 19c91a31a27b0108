"""A small data set of shapes, registered for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from crbp_d2.data import ShapesConfig, make_shapes, register_panoptic


@contextmanager
def registered_shapes(folder: Path, name: str, *, scenes: int, seed: int) -> Iterator[Path]:
    """Draws scenes of 64 pixels to `folder` and registers them under `name` within the block."""
    make_shapes(folder, scenes=scenes, seed=seed, config=ShapesConfig(size=64), workers=1)
    register_panoptic(
        name,
        images=folder / "images",
        panoptic_json=folder / "panoptic.json",
        panoptic_pngs=folder / "panoptic",
    )
    yield folder
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
