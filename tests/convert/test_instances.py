"""COCO's instance format, with maps of stuff and without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.panoptic_data import HEIGHT, WIDTH, Written, write_panoptic

from .apart import (
    KINDS,
    convert,
    encoded,
    masks_of,
    of_data,
    of_output,
    result,
    to,
    write_instances,
    write_labels,
)

MAPS = {("sky", 0): 300, ("road", 0): 2}
VALUES = ["--values", "300=sky", "2=road"]


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def test_polygons_and_run_lengths_come_back(data: Written, tmp_path: Path, capsys) -> None:
    given = write_instances(data, tmp_path / "instances.json")
    kinds = {type(annotation["segmentation"]) for annotation in given["annotations"]}
    assert kinds == {list, dict}
    out = tmp_path / "out"
    assert convert("instances", tmp_path / "instances.json", data.images, *KINDS, *to(out)) == 0
    assert of_output(out) == of_data(data)
    assert {(one["id"], one["name"], one["isthing"]) for one in result(out)["categories"]} == {
        (3, "cup", 1), (1, "dog", 1), (12, "sky", 0), (7, "road", 0)
    }  # fmt: skip
    assert [image["id"] for image in result(out)["images"]] == [10, 11, 12]
    output = capsys.readouterr().out
    assert "|   12 | sky     | stuff  |          3 |          0 |" in output
    assert "3 images (0 without any segment)" in output
    assert "pixels covered twice: 0.00 %" in output


def test_stuff_comes_from_maps(data: Written, tmp_path: Path) -> None:
    write_instances(data, tmp_path / "instances.json", ("dog", "cup"))
    write_labels(data, tmp_path / "maps", MAPS)
    out = tmp_path / "out"
    maps = ["--semantic", tmp_path / "maps", *VALUES]
    assert convert("instances", tmp_path / "instances.json", data.images, *maps, *to(out)) == 0
    assert of_output(out) == of_data(data)


def test_maps_of_stuff_lie_below_larger_objects(data: Written, tmp_path: Path) -> None:
    """The patch of sky in the hole is smaller than a dog without hole."""
    given = write_instances(data, tmp_path / "instances.json", ("dog",))
    for annotation in given["annotations"]:
        annotation["segmentation"] = [[5, 10, 25, 10, 25, 30, 5, 30]]
    (tmp_path / "instances.json").write_text(json.dumps(given))
    (tmp_path / "maps").mkdir()
    small = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    small[14:18, 10:20] = 2
    for number in range(3):
        Image.fromarray(small).save(tmp_path / "maps" / f"{number}.png")
    maps = ["--semantic", tmp_path / "maps", *VALUES]
    out = tmp_path / "out"
    convert("instances", tmp_path / "instances.json", data.images, *maps, *to(out))
    found = masks_of(result(out), out / "panoptic_back")["0.jpg"]
    assert [(name, int(mask.sum())) for name, _, mask in found] == [("dog", 400)]


def test_a_root_class_that_nothing_uses_is_left_out(data: Written, tmp_path: Path) -> None:
    given = write_instances(data, tmp_path / "instances.json")
    given["categories"].insert(0, {"id": 0, "name": "dog", "supercategory": "none"})
    (tmp_path / "instances.json").write_text(json.dumps(given))
    out = tmp_path / "out"
    assert convert("instances", tmp_path / "instances.json", data.images, *KINDS, *to(out)) == 0
    assert of_output(out) == of_data(data)
    assert 0 not in [category["id"] for category in result(out)["categories"]]


def test_kinds_that_the_file_states_are_taken(data: Written, tmp_path: Path) -> None:
    given = write_instances(data, tmp_path / "instances.json")
    for category in given["categories"]:
        category["isthing"] = category["name"] in ("dog", "cup", "road")
        category["color"] = [category["id"], 0, 0]
    (tmp_path / "instances.json").write_text(json.dumps(given))
    out = tmp_path / "out"
    convert("instances", tmp_path / "instances.json", data.images, *to(out), "--stuff", "road")
    assert of_output(out) == of_data(data)
    assert result(out)["categories"][0]["color"] == [3, 0, 0]


def first(**changes: Any) -> Callable[[dict], None]:
    """Changes the first annotation, of which the id is 1."""
    return lambda content: content["annotations"][0].update(changes)


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown class": (first(category_id=5), "annotation 1: unknown category id 5; add it to"),
    "unknown image": (first(image_id=5), "annotation 1: unknown image id 5; add it to"),
    "empty polygon": (first(segmentation=[[]]), "annotation 1: 'segmentation' has no polygon of"),
    "no polygon": (first(segmentation=[]), "annotation 1: 'segmentation' has no polygon of"),
    "box alone": (
        lambda content: content["annotations"][0].pop("segmentation"),
        "annotations[0] lacks 'segmentation': polygons or run lengths",
    ),
    "odd polygon": (
        first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 1: a polygon of 'segmentation' has an odd number",
    ),
    "polygon outside": (
        first(segmentation=[[1, 2, 90, 4, 5, 6]]),
        "annotation 1: 'segmentation' reaches beyond the image of 60 x 40 pixels",
    ),
    "run lengths of another size": (
        first(segmentation=encoded(np.ones((WIDTH, HEIGHT)))),
        "annotation 1: the run lengths are of size [60, 40], the image is [40, 60]",
    ),
    "run lengths too short": (
        first(segmentation={"size": [HEIGHT, WIDTH], "counts": [3, 4]}),
        "annotation 1: the run lengths don't add up",
    ),
    "duplicate id": (
        lambda content: content["annotations"][1].update(id=1),
        "duplicate id 1 in 'annotations'",
    ),
    "duplicate image id": (
        lambda content: content["images"][1].update(id=10),
        "duplicate image id 10",
    ),
    "duplicate class": (
        lambda content: content["categories"][1].update(name="cup"),
        "categories 3 and 1 are both called 'cup' and in use; rename one",
    ),
    "name with a backslash": (
        lambda content: content["images"][0].update(file_name="train\\0.jpg"),
        "'file_name' is 'train\\\\0.jpg', must be a path inside the folder of images, its folders",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_json_is_named(data: Written, tmp_path: Path, capsys, case: str) -> None:
    change, message = BROKEN[case]
    path = tmp_path / "instances.json"
    content = write_instances(data, path)
    change(content)
    path.write_text(json.dumps(content))
    assert convert("instances", path, data.images, *KINDS, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert message in error and str(path) in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_cut_json_is_named(data: Written, tmp_path: Path, capsys) -> None:
    path = tmp_path / "instances.json"
    write_instances(data, path)
    path.write_text(path.read_text()[:200])
    assert convert("instances", path, data.images, *to(tmp_path / "out")) == 1
    assert f"{path}: not a JSON file" in capsys.readouterr().err


def test_missing_and_other_images_are_named(data: Written, tmp_path: Path, capsys) -> None:
    path = tmp_path / "instances.json"
    write_instances(data, path)
    (data.images / "1.jpg").unlink()
    Image.new("RGB", (30, 40)).save(data.images / "2.jpg")
    assert convert("instances", path, data.images, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert f"{data.images}/1.jpg: no such file; add the image" in error
    assert f"{path}: 2.jpg is 60 x 40 pixels, but its image 30 x 40; export it" in error


def write_map(folder: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(folder / "1.png")


MAP_BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / "1.png").unlink(), "1.png: no such map of stuff; add it"),
    "another size": (
        lambda folder: write_map(folder, np.zeros((40, 50), dtype=np.uint8)),
        "1.png: is 50 x 40 pixels, but its image 60 x 40",
    ),
    "unknown value": (
        lambda folder: write_map(folder, np.full((40, 60), 9, dtype=np.uint8)),
        "1.png: the value 9 has no meaning; name its class, or give it to --void",
    ),
    "two of an image": (
        lambda folder: Image.new("L", (60, 40)).save(folder / "1.bmp"),
        "1.png: by '{id}.*' the image '1', as 1.bmp is; remove one of them",
    ),
}


@pytest.mark.parametrize("case", MAP_BROKEN)
def test_broken_map_of_stuff_is_named(data: Written, tmp_path: Path, capsys, case: str) -> None:
    damage, message = MAP_BROKEN[case]
    write_instances(data, tmp_path / "instances.json", ("dog", "cup"))
    write_labels(data, tmp_path / "maps", MAPS)
    damage(tmp_path / "maps")
    words = [tmp_path / "instances.json", data.images, "--semantic", tmp_path / "maps"]
    assert convert("instances", *words, *VALUES, *to(tmp_path / "out")) == 1
    assert f"{tmp_path}/maps/{message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--values", "1=sky"], "--values: needs --semantic"),
        (["--semantic", "maps"], "--semantic maps: needs --values"),
        (["--semantic", "maps", "--values", "sky"], "--values 'sky': must be VALUE=NAME"),
        (["--semantic", "maps", "--values", "1=a", "1=b"], "--values '1=b': 1 has a name already"),
        (["--semantic", "nowhere", "--values", "1=sky"], "nowhere: no such folder"),
    ],
)
def test_maps_and_values_belong_together(
    data: Written, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    write_instances(data, tmp_path / "instances.json")
    words = [tmp_path / "instances.json", data.images, *options]
    assert convert("instances", *words, *to(tmp_path / "out")) == 1
    assert message in capsys.readouterr().err
