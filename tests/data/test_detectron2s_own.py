"""Data that Detectron2 registered: prepared under the same name, or left alone."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import register_coco_panoptic_separated
from PIL import Image

from crbp_d2.data import DatasetError, ensure_prepared

from .panoptic_data import Written, write_panoptic

CLASSES = {
    "thing_classes": ["Dog", "Cup"],
    "thing_dataset_id_to_contiguous_id": {1: 0, 3: 1},
    "stuff_classes": ["things", "Road", "Sky"],
    "stuff_dataset_id_to_contiguous_id": {7: 1, 12: 2, 0: 0},
    "stuff_colors": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
}


def register(data: Written, name: str, **changes: object) -> str:
    register_coco_panoptic_separated(
        name,
        {**CLASSES, **changes},
        image_root=str(data.images),
        panoptic_root=str(data.pngs),
        panoptic_json=str(data.json),
        sem_seg_root=str(data.folder / "panoptic_stuff"),
        instances_json=str(data.folder / "instances.json"),
    )
    return f"{name}_separated"


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def test_missing_stuff_maps_and_instances_are_derived(data: Written) -> None:
    name = register(data, "incomplete")
    assert ensure_prepared(name) is not None
    metadata = MetadataCatalog.get(name)
    for key, value in CLASSES.items():
        assert metadata.get(key) == value
    records = DatasetCatalog.get(name)
    assert [len(record["annotations"]) for record in records] == [3, 3, 3]
    assert all(Path(record["sem_seg_file_name"]).is_file() for record in records)
    assert not (data.folder / "panoptic_stuff").exists()


def test_complete_stuff_maps_are_used(data: Written) -> None:
    name = register(data, "complete")
    stuff = data.folder / "panoptic_stuff"
    stuff.mkdir()
    for number in range(3):
        Image.new("L", (60, 40)).save(stuff / f"{number}.png")
    assert ensure_prepared(name) is None
    assert MetadataCatalog.get(name).sem_seg_root == str(stuff)
    # One is lost: all are derived.
    (stuff / "1.png").unlink()
    assert ensure_prepared(name) is not None
    assert MetadataCatalog.get(name).sem_seg_root != str(stuff)


def test_other_categories_are_an_error(data: Written) -> None:
    name = register(data, "other", thing_dataset_id_to_contiguous_id={1: 0, 2: 1})
    with pytest.raises(DatasetError, match="categories differ from those of other_separated"):
        ensure_prepared(name)


def test_missing_files_are_named(data: Written) -> None:
    name = register(data, "missing")
    data.json.unlink()
    with pytest.raises(DatasetError, match="panoptic.json: no such file(.|\n)*DETECTRON2_DATASETS"):
        ensure_prepared(name)
