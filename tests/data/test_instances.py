"""A given instance JSON: right annotations score in full whatever their ids, others are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image

from crbp_d2.data import DatasetError, ensure_prepared, register_panoptic
from crbp_d2.data.instances import read_instances_json
from crbp_d2.data.validate import read_panoptic_json
from tests.evaluation.test_annotations import assert_perfect, evaluate

from .panoptic_data import HEIGHT, WIDTH, Written, instances_of, write_panoptic
from .real_data import SHARED, needs_real_data

Change = Callable[[dict[str, Any]], object]


def run_lengths(annotation: dict[str, Any], compressed: bool) -> None:
    """The mask of an annotation in COCO's other forms."""
    encoded = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))
    counts: Any = encoded["counts"].decode()
    if not compressed:
        column = mask_util.decode(encoded).reshape(-1, order="F")
        changes = np.flatnonzero(np.diff(column)) + 1
        counts = np.diff([0, *changes, column.size]).tolist()
        counts = counts if column[0] == 0 else [0, *counts]
    annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}


def each(change: Change) -> Change:
    """Applies a change to every annotation."""
    return lambda content: [change(annotation) for annotation in content["annotations"]]


def number_from_zero(content: dict[str, Any]) -> None:
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number


def no_crowd_as_run_lengths(compressed: bool) -> Change:
    def change(annotation: dict[str, Any]) -> None:
        if not annotation["iscrowd"]:
            run_lengths(annotation, compressed)

    return each(change)


def add_empty(content: dict[str, Any]) -> None:
    """As COCO's training images have them: polygons and boxes of height 0."""
    line = [9.98, 28.56, 15.52, 28.56, 15.52, 28.56, 11.09, 28.56]
    content["annotations"].append(
        {
            "id": 99,
            "image_id": 10,
            "category_id": 3,
            "iscrowd": 0,
            "area": 0.0,
            "bbox": [9.98, 28.56, 5.54, 0.0],
            "segmentation": [line],
        }
    )


GOOD: dict[str, Change] = {
    "as they are": lambda content: None,
    "ids from 0": number_from_zero,
    "one id for all": each(lambda annotation: annotation.update(id=7)),
    "no ids": each(lambda annotation: annotation.pop("id")),
    "ids that are text": each(lambda annotation: annotation.update(id=f"a{annotation['id']}")),
    "no areas": each(lambda annotation: annotation.pop("area")),
    "no boxes": each(lambda annotation: annotation.pop("bbox")),
    "compressed run lengths": no_crowd_as_run_lengths(True),
    "run lengths": no_crowd_as_run_lengths(False),
    "crowds as booleans": each(lambda one: one.update(iscrowd=bool(one["iscrowd"]))),
    "an instance without a pixel": add_empty,
    "images by id alone": lambda content: content.update(
        images=[{"id": image["id"]} for image in content["images"]]
    ),
}


def register(data: Written, name: str, content: dict[str, Any]) -> None:
    given = data.folder / "instances.json"
    # With the mark that Windows' editors begin a file with.
    given.write_text(json.dumps(content), encoding="utf-8-sig")
    register_panoptic(name, **data.arguments(), instances_json=given)


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_right_annotations_score_in_full_and_train(
    tmp_path: Path, request: pytest.FixtureRequest, case: str, mask_format: str
) -> None:
    data = write_panoptic(tmp_path / "data")
    content = instances_of(data)
    GOOD[case](content)
    name = request.node.name
    register(data, name, content)
    if mask_format == "polygon":
        assert_perfect(evaluate(name, tmp_path / "output"))
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    for record in DatasetCatalog.get(name):
        assert len(DatasetMapper(cfg, is_train=True)(record)["instances"]) == 2


def test_images_without_segments_miss_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """They are left out of the panoptic data, so their instances can't be found."""
    data = write_panoptic(tmp_path / "data")
    instances = instances_of(data)
    content = data.read()
    content["annotations"][1]["segments_info"] = []
    data.write(content)
    Image.new("RGB", (WIDTH, HEIGHT)).save(data.pngs / "1.png")
    register(data, request.node.name, instances)
    assert_perfect(evaluate(request.node.name, tmp_path / "output"))


def first(**values: Any) -> Change:
    return lambda content: content["annotations"][0].update(values)


BAD: dict[str, tuple[Change, str]] = {
    "no category": (
        lambda content: content["annotations"][0].pop("category_id"),
        r"annotations\[0\] lacks 'category_id'",
    ),
    "no mask": (
        lambda content: content["annotations"][0].pop("segmentation"),
        r"annotations\[0\] lacks 'segmentation'",
    ),
    "unknown category": (first(category_id=12), "12 is no category id of a thing"),
    "unknown image": (first(image_id=77), r"annotations\[0\]: unknown image id 77"),
    "two points": (first(segmentation=[[1, 2, 3, 4]]), "no polygon of at least three points"),
    "odd polygon": (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "odd number of coordinates"),
    "empty mask": (first(segmentation=[]), "no polygon of at least three points"),
    "text as mask": (first(segmentation="x"), "'segmentation' is 'x', must be polygons or run le"),
    "NaN in a polygon": (
        first(segmentation=[[1, 2, 3, 4, 5, float("nan")]]),
        "must be run lengths or a list of polygons",
    ),
    "polygon outside": (
        first(segmentation=[[5, 10, 90, 10, 90, 30, 5, 30]]),
        "'segmentation' reaches beyond the image of 60 x 40 pixels",
    ),
    "run lengths of another size": (
        first(segmentation={"size": [60, 40], "counts": [0, 2400]}),
        r"of size \[60, 40\], the image is \[40, 60\]",
    ),
    "too few run lengths": (
        first(segmentation={"size": [40, 60], "counts": [10, 20]}),
        "don't add up to the pixels",
    ),
    "compressed, too few": (
        first(segmentation={"size": [40, 60], "counts": "P8P8P8"}),
        "don't add up to the pixels",
    ),
    "run lengths of something else": (
        first(segmentation={"size": [40, 60], "counts": "é"}),
        "'counts' of the run lengths must be",
    ),
    "box of text": (first(bbox="x"), "'bbox' is 'x', must be left, top, width and height"),
    "negative box": (first(bbox=[9, 9, -3, 4]), r"'bbox' is \[9, 9, -3, 4\], must be"),
    "box outside": (first(bbox=[5, 10, 25, 35]), "reaches beyond the image of 60 x 40"),
    "box elsewhere": (first(bbox=[40, 2, 5, 5]), "covers less than half of its mask"),
    "area of text": (first(area="big"), "'area' is 'big', must be a number of pixels"),
    "area NaN": (first(area=float("nan")), "'area' is nan, must be a number of pixels"),
    "crowd of text": (first(iscrowd="false"), "'iscrowd' is 'false', must be 1 for a crowd"),
    "crowd null": (first(iscrowd=None), "'iscrowd' is None, must be 1 for a crowd"),
    "ignored": (first(ignore=1), "'ignore' is 1, must be 0 or left out: use 'iscrowd'"),
    "another name": (
        lambda content: content["categories"][0].update(name="mug"),
        "category 3: 'mug', but 'cup' in the panoptic JSON",
    ),
    "category twice": (
        lambda content: content["categories"].append(content["categories"][0]),
        "duplicate id 3 in categories",
    ),
    "another size": (
        lambda content: content["images"][0].update(width=50),
        "image 10: width 50, but 60 in the panoptic JSON",
    ),
    "another image": (
        lambda content: content["images"][0].update(file_name="other.jpg"),
        "image 10: 'other.jpg', but '0.jpg' in the panoptic JSON",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, request: Any, case: str) -> None:
    data = write_panoptic(tmp_path / "data")
    content = instances_of(data)
    # Images of several things at once would do as well; all are reported together.
    change, message = BAD[case]
    change(content)
    register(data, request.node.name, content)
    with pytest.raises(DatasetError, match=message) as caught:
        ensure_prepared(request.node.name, workers=1)
    assert str(data.folder / "instances.json") in str(caught.value)
    assert not Path(MetadataCatalog.get(request.node.name).sem_seg_root).exists()


@needs_real_data
def test_coco_stays_as_it_is() -> None:
    for split in ("train", "val"):
        folder = SHARED / "coco" / "annotations"
        panoptic = read_panoptic_json(folder / f"panoptic_{split}2017.json")
        path = folder / f"instances_{split}2017.json"
        original = json.loads(path.read_text())["annotations"]
        for annotation in original:
            del annotation["id"]
        assert read_instances_json(path, panoptic) == original
