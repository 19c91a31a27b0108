"""Any value in any field is refused when the data are prepared, or works in all that follows."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)

from crbp_d2.config import add_crbp_config
from crbp_d2.data import DatasetError, ensure_prepared, require_same_classes
from crbp_d2.evaluation import build_evaluator
from crbp_d2.evaluation.pictures import write_pictures
from tests.evaluation.models import annotations_as_predictions, tiny_config

from .mixed_data import registered
from .panoptic_data import Written, instances_of, write_panoptic

pytestmark = pytest.mark.slow

Json = dict[str, Any]
Files = dict[str, Json]

MISSING = object()
VALUES: list[Any] = [
    MISSING,
    None,
    *("", "x", "1", "false", "a\nb", "\ud800", "../x", "a\\b", "#ff8000", "things"),
    *(True, False, -1, 0, 1, 3, 255, 1.0, 0.5, float("nan"), float("inf"), 2**31, 2**63, 2**70),
    *([], {}, [1], [1, 2, 3], [0.5, 0.5, 0.5], [1, 2, 3, 4], [None] * 4, [[1, 2, 3]], {"size": 1}),
]


def put(entry: Json, key: str, value: Any) -> None:
    if value is MISSING:
        entry.pop(key, None)
    else:
        entry[key] = copy.copy(value)


def first(file: str, key: str, *fields: str) -> Callable[[Files, Any], None]:
    """The fields of the first entry of a list."""

    def change(files: Files, value: Any) -> None:
        for field in fields:
            put(files[file][key][0], field, value)

    return change


def segment(field: str) -> Callable[[Files, Any], None]:
    return lambda files, value: put(
        files["panoptic"]["annotations"][0]["segments_info"][0], field, value
    )


def image_id(files: Files, value: Any) -> None:
    """The id of an image, wherever it is named."""
    for content in files.values():
        for entry in content["images"]:
            if entry["id"] == 10:
                put(entry, "id", value)
        for entry in content["annotations"]:
            if entry["image_id"] == 10:
                put(entry, "image_id", value)


def all_image_ids(files: Files, value: Any) -> None:
    """All of them, so that they are of one type."""
    for content in files.values():
        for key, entries in (("id", content["images"]), ("image_id", content["annotations"])):
            for entry in entries:
                put(entry, key, f"{value}{entry[key]}" if isinstance(value, str) else value)


def category_id(files: Files, value: Any) -> None:
    """The id of the dog, wherever it is named."""
    for content in files.values():
        for entry in content["categories"]:
            if entry["id"] == 1:
                put(entry, "id", value)
        for annotation in content["annotations"]:
            for entry in annotation.get("segments_info", [annotation]):
                if entry["category_id"] == 1:
                    put(entry, "category_id", value)


def category(field: str) -> Callable[[Files, Any], None]:
    """Of the dog, in both files."""

    def change(files: Files, value: Any) -> None:
        for content in files.values():
            put(next(entry for entry in content["categories"] if entry["id"] == 1), field, value)

    return change


def everywhere(field: str) -> Callable[[Files, Any], None]:
    """A field that nothing reads."""

    def change(files: Files, value: Any) -> None:
        for content in files.values():
            put(content, field, value)
            for entries in (content["images"], content["annotations"], content["categories"]):
                put(entries[0], field, value)

    return change


FIELDS: dict[str, Callable[[Files, Any], None]] = {
    "panoptic image id": first("panoptic", "images", "id"),
    "panoptic image file_name": first("panoptic", "images", "file_name"),
    "panoptic image width": first("panoptic", "images", "width"),
    "panoptic image height": first("panoptic", "images", "height"),
    "panoptic annotation image_id": first("panoptic", "annotations", "image_id"),
    "panoptic annotation file_name": first("panoptic", "annotations", "file_name"),
    "panoptic annotation segments_info": first("panoptic", "annotations", "segments_info"),
    "panoptic category id": first("panoptic", "categories", "id"),
    "panoptic category name": first("panoptic", "categories", "name"),
    "panoptic category isthing": first("panoptic", "categories", "isthing"),
    "panoptic category color": first("panoptic", "categories", "color"),
    "panoptic segment id": segment("id"),
    "panoptic segment category_id": segment("category_id"),
    "panoptic segment iscrowd": segment("iscrowd"),
    "panoptic segment area": segment("area"),
    "panoptic segment bbox": segment("bbox"),
    "panoptic lists": lambda files, value: put(files["panoptic"], "images", value),
    "instances image id": first("instances", "images", "id"),
    "instances image file_name": first("instances", "images", "file_name"),
    "instances image width and height": first("instances", "images", "width", "height"),
    "instances annotation id": first("instances", "annotations", "id"),
    "instances annotation image_id": first("instances", "annotations", "image_id"),
    "instances annotation category_id": first("instances", "annotations", "category_id"),
    "instances annotation segmentation": first("instances", "annotations", "segmentation"),
    "instances annotation bbox": first("instances", "annotations", "bbox"),
    "instances annotation area": first("instances", "annotations", "area"),
    "instances annotation iscrowd": first("instances", "annotations", "iscrowd"),
    "instances annotation ignore": first("instances", "annotations", "ignore"),
    "instances category id": first("instances", "categories", "id"),
    "instances category name": first("instances", "categories", "name"),
    "instances lists": lambda files, value: put(files["instances"], "annotations", value),
    "image id everywhere": image_id,
    "all image ids": all_image_ids,
    "category id everywhere": category_id,
    "category name everywhere": category("name"),
    "category isthing everywhere": category("isthing"),
    "license": everywhere("license"),
    "info": everywhere("info"),
    "keypoints": everywhere("keypoints"),
}


class Perfect(torch.nn.Module):
    """Answers with the annotations."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.answers = {
            record["image_id"]: output for record, output in annotations_as_predictions(name)
        }

    def forward(self, batch: list[Json]) -> list[Json]:
        return [self.answers[record["image_id"]] for record in batch]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two images: fewer would have no duplicates."""
    written = write_panoptic(tmp_path_factory.mktemp("fields") / "data")
    content = written.read()
    written.write(
        {
            key: entries[: len(entries) if key == "categories" else 2]
            for key, entries in content.items()
        }
    )
    return written


@pytest.fixture(scope="module")
def works() -> Callable[[str, Path], None]:
    """Runs all that reads prepared data, once for each content that it reads."""
    seen: set[Any] = set()

    def check(name: str, folder: Path) -> None:
        metadata = MetadataCatalog.get(name)
        panoptic, instances = (
            Path(path).read_text() for path in (metadata.panoptic_json, metadata.json_file)
        )
        for content in (panoptic, instances):
            json.loads(content, parse_constant=_no_constant)
        classes = str([value for key, value in metadata.as_dict().items() if "classes" in key])
        for read, run in (
            ((panoptic, instances), _train_and_evaluate),
            ((classes, str(metadata.get("thing_colors"))), _draw),
        ):
            if read not in seen:
                seen.add(read)
                run(name, folder)

    return check


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def _config(name: str) -> CfgNode:
    cfg = tiny_config(name)
    add_crbp_config(cfg)
    cfg.TEST.PICTURES = 1
    return cfg


def _train_and_evaluate(name: str, folder: Path) -> None:
    cfg = _config(name)
    for mask_format in ("polygon", "bitmask"):
        cfg.INPUT.MASK_FORMAT = mask_format
        records = get_detection_dataset_dicts((name,), filter_empty=False)
        for sample in map(DatasetMapper(cfg, is_train=True), records):
            assert torch.isfinite(sample["instances"].gt_boxes.tensor).all()
            assert int(sample["sem_seg"][sample["sem_seg"] < 255].max()) < 4
    evaluators = build_evaluator(cfg, name, str(folder / "output"))
    evaluators.reset()
    for record, output in annotations_as_predictions(name):
        evaluators.process([record], [output])
    results = evaluators.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    # Without instances there is no AP.
    expected = 100 if any(record["annotations"] for record in records) else float("nan")
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(expected, abs=0.01, nan_ok=True)
    for file in (folder / "output").glob("*.json"):
        json.loads(file.read_text(), parse_constant=_no_constant)


def _draw(name: str, folder: Path) -> None:
    if isinstance(DatasetCatalog.get(name)[0]["image_id"], int):
        write_pictures(_config(name), Perfect(name), name, folder / "pictures")


def _tries(name: str) -> Iterator[Any]:
    # Some values are right in one field alone.
    own = {"file_name": ["./0.jpg", "./0.png"], "bbox": [[5, 10, 20, 20]]}.get(name.split()[-1], [])
    return itertools.chain(VALUES, own)


@pytest.mark.parametrize("field", FIELDS)
def test_value_is_refused_or_works(
    tmp_path: Path, data: Written, works: Callable[[str, Path], None], field: str
) -> None:
    for number, value in enumerate(_tries(field)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files: Files = {"panoptic": data.read(), "instances": instances_of(data)}
        FIELDS[field](files, value)
        paths = {f"{kind}_json": folder / f"{kind}.json" for kind in files}
        for path, content in zip(paths.values(), files.values(), strict=True):
            path.write_text(json.dumps(content))
        arguments = {**data.arguments(), **paths, "cache": folder / "cache"}
        try:
            with registered(f"{field} {number}", arguments) as name:
                ensure_prepared(name, workers=1)
                works(name, folder)
                require_same_classes([name])
        except DatasetError as error:
            # The file, and what is wrong in it.
            assert any(str(path) in str(error) for path in paths.values()), (value, error)
            words = [*field.split()[-1].split("_"), "categor", "image", "segment", "annotations"]
            assert any(word in str(error) for word in words), (value, error)
            made = [path for path in folder.rglob("*") if path.suffix not in (".json", ".lock")]
            assert made in ([], [folder / "cache"]), value
        except Exception as error:
            raise AssertionError(f"{field}: {value!r} is neither refused nor works") from error
