"""What a registered data set hands to Detectron2."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.data import DatasetError, ensure_prepared, register_panoptic, set_num_classes

from .panoptic_data import CROWD, CUP, DOG, ROAD, SKY, segment_ids, write_panoptic


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


def test_metadata_are_those_of_separated_panoptic_data(tmp_path: Path, name: str) -> None:
    data = write_panoptic(tmp_path / "data")
    register_panoptic(name, **data.arguments())
    metadata = MetadataCatalog.get(name)
    # In the order of the category ids, whatever that of the JSON.
    assert metadata.thing_classes == ["dog", "cup"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 1}
    assert metadata.stuff_classes == ["things", "road", "sky"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, 7: 1, 12: 2}
    assert metadata.thing_colors == [[40, 50, 60], [10, 20, 30]]
    assert len(metadata.stuff_colors) == 3
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.ignore_label == 255
    assert metadata.image_root == str(data.images)
    assert metadata.panoptic_root == str(data.pngs)
    builtin = MetadataCatalog.get("coco_2017_val_panoptic_separated").as_dict()
    assert metadata.as_dict().keys() == builtin.keys()


def test_records(tmp_path: Path, name: str) -> None:
    register_panoptic(name, **write_panoptic(tmp_path / "data").arguments())
    records = DatasetCatalog.get(name)
    assert [record["image_id"] for record in records] == [10, 11, 12]
    first = records[0]
    assert (first["height"], first["width"]) == (40, 60)
    ids = segment_ids()
    stuff = np.array(Image.open(first["sem_seg_file_name"]))
    expected = np.select([ids == SKY, ids == ROAD, ids == 0], [2, 1, 255], default=0)
    np.testing.assert_array_equal(stuff, expected)
    by_id = dict(zip((DOG, CUP, CROWD), first["annotations"], strict=True))
    for value, category in ((DOG, 0), (CUP, 1), (CROWD, 1)):
        annotation = by_id[value]
        assert annotation["category_id"] == category
        assert annotation["iscrowd"] == int(value == CROWD)
        shape = annotation["segmentation"]
        encoded = shape if value == CROWD else mask_util.merge(mask_util.frPyObjects(shape, 40, 60))
        np.testing.assert_array_equal(mask_util.decode(encoded), ids == value)
    assert by_id[DOG]["bbox"] == [5, 10, 20, 20]


def test_areas_and_boxes_are_measured(tmp_path: Path, name: str) -> None:
    register_panoptic(name, **write_panoptic(tmp_path / "data").arguments())
    ensure_prepared(name)
    measured = json.loads(Path(MetadataCatalog.get(name).panoptic_json).read_text())
    ids = segment_ids()
    for segment in measured["annotations"][0]["segments_info"]:
        assert segment["area"] == (ids == segment["id"]).sum()
    assert measured["annotations"][0]["segments_info"][0]["bbox"] == [5, 10, 20, 20]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_detectron2s_mapper_takes_the_records(tmp_path: Path, name: str, mask_format: str) -> None:
    register_panoptic(name, **write_panoptic(tmp_path / "data").arguments())
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    mapped = DatasetMapper(cfg, is_train=True)(DatasetCatalog.get(name)[0])
    assert mapped["sem_seg"].shape == (80, 120)
    assert mapped["instances"].gt_classes.tolist() == [0, 1]
    assert len(mapped["instances"].gt_masks) == 2


def test_numbers_of_classes(tmp_path: Path, name: str) -> None:
    register_panoptic(name, **write_panoptic(tmp_path / "data").arguments())
    cfg = get_cfg()
    set_num_classes(cfg, name)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 3)
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    set_num_classes(cfg, "coco_2017_train_panoptic_separated")
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (80, 54)


def test_given_instances_are_used(tmp_path: Path, name: str) -> None:
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    instance = {
        "id": 1,
        "image_id": 11,
        "category_id": 3,
        "iscrowd": 0,
        "area": 50,
        "bbox": [1, 2, 10, 5],
        "segmentation": [[1, 2, 11, 2, 11, 7, 1, 7]],
    }
    things = [category for category in content["categories"] if category["isthing"]]
    given = tmp_path / "instances.json"
    given.write_text(
        json.dumps({"images": content["images"], "annotations": [instance], "categories": things})
    )
    register_panoptic(name, **data.arguments(), instances_json=given)
    assert [len(record["annotations"]) for record in DatasetCatalog.get(name)] == [0, 1, 0]
    # Evaluators read them in normal form.
    read = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert read["annotations"] == [{**instance, "bbox": [1.0, 2.0, 10.0, 5.0]}]


def test_category_id_zero_is_an_ordinary_id(tmp_path: Path, name: str) -> None:
    data = write_panoptic(tmp_path / "data")
    content = json.loads(data.json.read_text().replace('"category_id": 7,', '"category_id": 0,'))
    content["categories"][3]["id"] = 0
    data.write(content)
    register_panoptic(name, **data.arguments())
    mapping = MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id
    assert mapping == {0: 1, 12: 2, 13: 0}


def test_image_without_segments_is_left_out(tmp_path: Path, name: str) -> None:
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    content["annotations"][1]["segments_info"] = []
    data.write(content)
    Image.fromarray(id2rgb(np.zeros((40, 60), dtype=int))).save(data.pngs / "1.png")
    register_panoptic(name, **data.arguments())
    assert [record["image_id"] for record in DatasetCatalog.get(name)] == [10, 12]
    manifest = ensure_prepared(name)
    assert manifest is not None and manifest.left_out == 1
    assert manifest.segments == {"1": 2, "3": 4, "7": 2, "12": 2}


def test_names_are_taken_once(tmp_path: Path, name: str) -> None:
    first, second = write_panoptic(tmp_path / "first"), write_panoptic(tmp_path / "second")
    register_panoptic(name, **first.arguments())
    register_panoptic(name, **first.arguments())
    with pytest.raises(DatasetError, match="registered already"):
        register_panoptic(name, **second.arguments())


def test_removed_data_set_can_be_registered_again(tmp_path: Path, name: str) -> None:
    first, second = write_panoptic(tmp_path / "first"), write_panoptic(tmp_path / "second")
    register_panoptic(name, **first.arguments())
    DatasetCatalog.remove(name)
    register_panoptic(name, **first.arguments())
    assert len(DatasetCatalog.get(name)) == 3
    DatasetCatalog.remove(name)
    with pytest.raises(DatasetError, match=r"call MetadataCatalog.remove\('test_removed"):
        register_panoptic(name, **second.arguments())
    assert name not in DatasetCatalog and ensure_prepared(name) is None
    MetadataCatalog.remove(name)
    register_panoptic(name, **second.arguments())
    assert Path(DatasetCatalog.get(name)[0]["file_name"]).parent == second.images


def test_categories_that_change_later_are_an_error(tmp_path: Path, name: str) -> None:
    data = write_panoptic(tmp_path / "data")
    register_panoptic(name, **data.arguments())
    content = data.read()
    content["categories"].append({"id": 99, "name": "tree", "isthing": 0})
    data.write(content)
    with pytest.raises(DatasetError, match="not the categories that"):
        DatasetCatalog.get(name)


def test_other_data_sets_are_left_alone() -> None:
    assert ensure_prepared("coco_2017_val") is None
    assert ensure_prepared("never registered") is None
    assert "never registered" not in MetadataCatalog.list()
