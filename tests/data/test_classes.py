"""Data sets of one model have the same classes: ids, names and kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from crbp_d2.config import add_crbp_config
from crbp_d2.data import (
    DatasetError,
    ensure_prepared,
    register_panoptic,
    require_same_classes,
    set_num_classes,
)
from crbp_d2.engine import prepare
from crbp_d2.evaluation import build_evaluator
from tests.evaluation.models import tiny_config

from .panoptic_data import instances_of, write_panoptic
from .test_bad_data import edit


def swap_names(kind: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        one, other = (entry for entry in content["categories"] if entry["isthing"] == kind)
        one["name"], other["name"] = other["name"], one["name"]

    return change


def of_category(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["categories"][number].update(values)


DIFFERENT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "swapped things": (
        swap_names(1),
        r"thing class 0 'dog' \(category 1\) there is thing class 0 'cup' \(category 1\) here",
    ),
    "swapped stuff": (
        swap_names(0),
        r"stuff class 1 'road' \(category 7\) there is stuff class 1 'sky' \(category 7\) here",
    ),
    "a thing renamed": (
        of_category(0, name="mug"),
        r"thing class 1 'cup' \(category 3\) there is thing class 1 'mug' \(category 3\) here",
    ),
    "a thing in capitals": (of_category(0, name="Cup"), "'cup' .* there is .*'Cup'"),
    "stuff that is a thing": (
        of_category(2, isthing=1),
        r"no further thing class there is thing class 2 'sky' \(category 12\) here",
    ),
    "one category more": (
        lambda content: content["categories"].append({"id": 99, "name": "tree", "isthing": 0}),
        r"no further stuff class there is stuff class 3 'tree' \(category 99\) here",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_other_classes_are_refused(
    tmp_path: Path, request: pytest.FixtureRequest, case: str
) -> None:
    change, message = DIFFERENT[case]
    names = [f"{request.node.name} {which}" for which in ("one", "other", "like one")]
    for name in names:
        data = write_panoptic(tmp_path / name)
        if name.endswith("other"):
            edit(change)(data)
        register_panoptic(name, **data.arguments())
    require_same_classes([names[0], names[2]])
    for tried in ([names[0], names[1]], [names[0], names[2], names[1]]):
        with pytest.raises(DatasetError, match=message):
            require_same_classes(tried)


def test_evaluation_is_refused_on_other_classes_than_those_of_training(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    names = [f"{request.node.name} {which}" for which in ("train", "val")]
    for name in names:
        data = write_panoptic(tmp_path / name)
        if name.endswith("val"):
            edit(swap_names(1))(data)
        register_panoptic(name, **data.arguments())
    cfg = tiny_config(names[0])
    add_crbp_config(cfg)
    cfg.DATASETS.TEST = (names[1],)
    for eval_only in (True, False):
        with pytest.raises(DatasetError, match="'dog' .* there is .*'cup'"):
            prepare(cfg.clone(), eval_only=eval_only)


def test_data_sets_that_nobody_registered_dont_count() -> None:
    require_same_classes(["never registered", "pathfinder_14_val"])


@pytest.mark.parametrize(
    "names",
    [
        ("coco_2017_train_panoptic_separated", "coco_2017_val_100_panoptic_separated"),
        ("pathfinder_14_train", "pathfinder_25_test"),
        ("shapes_train", "shapes_val"),
        ("coco_2017_train", "coco_2017_val"),
    ],
)
def test_built_in_data_sets_go_together(names: tuple[str, str]) -> None:
    require_same_classes(names)


@pytest.mark.parametrize("other", ["pathfinder_14_train", "shapes_train", "coco_2017_val"])
def test_built_in_data_sets_of_different_kinds_dont(other: str) -> None:
    with pytest.raises(DatasetError, match="have different categories"):
        require_same_classes(["coco_2017_train_panoptic_separated", other])


def test_endings_of_cocos_names_dont_count(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """COCO's JSON says "wall-other-merged", Detectron2's list "wall"."""
    names = [f"{request.node.name} {number}" for number in (1, 2)]
    for name, called in zip(names, ("sky-other-merged", "sky"), strict=True):
        data = write_panoptic(tmp_path / name)
        edit(of_category(2, name=called))(data)
        register_panoptic(name, **data.arguments())
    require_same_classes(names)


def test_instance_data_that_detectron2_registered(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Their class names are known once they are loaded, which training did too late."""
    names = [f"{request.node.name} {number}" for number in (1, 2)]
    for name, called in zip(names, ("cup", "mug"), strict=True):
        data = write_panoptic(tmp_path / name)
        content = instances_of(data)
        content["categories"][0]["name"] = called
        data.write(content)
        register_coco_instances(name, {}, str(data.json), str(data.images))
        assert ensure_prepared(name) is None
    cfg = get_cfg()
    set_num_classes(cfg, names[0])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    with pytest.raises(DatasetError, match="thing class 1 'cup' .* there is thing class 1 'mug'"):
        require_same_classes(names)


@pytest.mark.parametrize("change", [swap_names(1), of_category(3, name="street")])
def test_names_that_change_after_registration_are_an_error(
    tmp_path: Path, request: pytest.FixtureRequest, change: Callable[[dict[str, Any]], None]
) -> None:
    data = write_panoptic(tmp_path / "data")
    name = request.node.name
    register_panoptic(name, **data.arguments())
    ensure_prepared(name)
    edit(change)(data)
    with pytest.raises(DatasetError, match="not the categories that .* was registered with"):
        ensure_prepared(name)


NAMES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "two things": (of_category(0, name="dog"), "categories 3 and 1 are both called 'dog'"),
    "thing and stuff": (of_category(0, name="sky"), "categories 3 and 12 are both called 'sky'"),
    "stuff called things": (
        of_category(2, name="things"),
        "stuff category 12 is called 'things', as the class of all things",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_results_would_mix_up_are_refused(tmp_path: Path, case: str) -> None:
    change, message = NAMES[case]
    data = write_panoptic(tmp_path / "data")
    edit(change)(data)
    with pytest.raises(DatasetError, match=f"panoptic.json: {message}"):
        register_panoptic("never", **data.arguments())
    assert "never" not in DatasetCatalog


def test_every_class_has_its_own_results(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A thing may be called as the class of all things: things are scored apart from stuff."""
    data = write_panoptic(tmp_path / "data")
    edit(of_category(0, name="things"))(data)
    register_panoptic(request.node.name, **data.arguments())
    assert MetadataCatalog.get(request.node.name).thing_classes == ["dog", "things"]
    build_evaluator(tiny_config(request.node.name), request.node.name)
