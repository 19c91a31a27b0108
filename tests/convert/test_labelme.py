"""Labelme's JSON files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crbp_d2.data.outlines import mask_to_polygons
from tests.data.panoptic_data import HEIGHT, WIDTH, Written, write_panoptic

from .apart import KINDS, convert, masks_of, of_data, of_output, result, to


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def file_of(image: str, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image,
        "imageData": "aGVsbG8=", "imageHeight": HEIGHT, "imageWidth": WIDTH,
    }  # fmt: skip


def shape(label: str, points: list, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": "polygon", **more}


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def take_apart(data: Written, folder: Path) -> None:
    """A file an image; the parts of an object in a group."""
    for image, found in masks_of(data.read(), data.pngs).items():
        shapes = []
        for number, (name, _, mask) in enumerate(found):
            for polygon in mask_to_polygons(mask.astype(np.uint8)):
                points = np.reshape(polygon, (-1, 2)).tolist()
                shapes.append(shape(name, points, group_id=number))
        write(folder, f"{Path(image).stem}.json", file_of(f"..\\data\\images\\{image}", shapes))


def test_polygons_in_groups_come_back(data: Written, tmp_path: Path) -> None:
    """With paths as written on Windows, out of the folder of the files."""
    take_apart(data, tmp_path / "labels ü")
    out = tmp_path / "out"
    assert convert("labelme", tmp_path / "labels ü", *KINDS, *to(out)) == 0
    assert of_output(out) == of_data(data, crowds=False)
    assert [image["file_name"] for image in result(out)["images"]] == [
        f"data/images/{number}.jpg" for number in range(3)
    ]


def converted(tmp_path: Path, shapes: list[dict[str, Any]]) -> list[tuple[str, int, np.ndarray]]:
    """Class, crowd and mask of the segments of a single image."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "in" / "a b.png")
    write(tmp_path / "in", "a b.json", file_of("a b.png", shapes))
    out = tmp_path / "out"
    assert convert("labelme", tmp_path / "in", *to(out)) == 0
    return masks_of(result(out), out / "panoptic_back")["a b.png"]


def test_rectangles_from_any_corner_and_circles(tmp_path: Path) -> None:
    found = converted(
        tmp_path,
        [
            shape("wall", [[50, 30], [40, 5]], shape_type="rectangle"),
            shape("disc", [[20, 15], [20, 21]], shape_type="circle"),
        ],
    )
    masks = {name: mask for name, _, mask in found}
    wall = np.zeros((HEIGHT, WIDTH), dtype=bool)
    wall[5:30, 40:50] = True
    np.testing.assert_array_equal(masks["wall"], wall)
    rows, columns = np.nonzero(masks["disc"])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (14, 25, 9, 20)
    assert masks["disc"].sum() == pytest.approx(np.pi * 36, rel=0.03)


def test_groups_join_shapes_of_one_label_only(tmp_path: Path) -> None:
    boxes = [[[1, 1], [5, 5]], [[11, 11], [15, 15]], [[21, 21], [25, 25]], [[31, 1], [35, 5]]]
    labels, groups = ["car", "car", "bus", "car"], [4, 4, 4, None]
    found = converted(
        tmp_path,
        [
            shape(label, box, group_id=group, shape_type="rectangle")
            for label, box, group in zip(labels, boxes, groups, strict=True)
        ],
    )
    assert sorted((name, int(mask.sum())) for name, _, mask in found) == [
        ("bus", 16), ("car", 16), ("car", 32)
    ]  # fmt: skip


def test_files_of_old_versions_are_read(tmp_path: Path) -> None:
    """Without kind of shape and group, or with null."""
    triangle = {"label": "car", "points": [[1, 1], [30, 1], [1, 30]]}
    found = converted(tmp_path, [triangle, {**triangle, "label": "bus", "shape_type": None}])
    assert [name for name, _, _ in found] == ["bus"]


TRIANGLE = [[1, 1], [30, 1], [1, 30]]
BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "empty polygon": (
        lambda content: content["shapes"].append(shape("car", [])),
        ", shapes[1] ('car'): 'segmentation' has no polygon of at least three points; draw it anew",
    ),
    "line": (
        lambda content: content["shapes"].append(shape("car", TRIANGLE, shape_type="line")),
        ": shapes[1]: 'shape_type' is 'line', must be one of polygon, rectangle, ci",
    ),
    "rectangle of three": (
        lambda content: content["shapes"].append(shape("car", TRIANGLE, shape_type="rectangle")),
        ", shapes[1] ('car'): a rectangle has two points, not 3; draw it anew, or remove it",
    ),
    "outside": (
        lambda content: content["shapes"].append(shape("car", [[1, 1], [80, 1], [1, 30]])),
        ", shapes[1] ('car'): 'segmentation' reaches beyond the image of 60 x 40 pixels",
    ),
    "unknown class": (
        lambda content: content["shapes"].append(shape("caar", TRIANGLE)),
        ", shapes[1], on a.png: unknown class 'caar', there is 'car'; correct it, or give",
    ),
    "points of one number": (
        lambda content: content["shapes"].append(shape("car", [[1], [2], [3]])),
        ": shapes[1]: 'points' is [[1], [2], [3]], must be a list of [x, y]",
    ),
    "missing image": (
        lambda content: content.update(imagePath="b.png"),
        "b.png: no such file; add the image, or correct its name in the annotations",
    ),
    "image of another size": (
        lambda content: content.update(imageHeight=50),
        ": a.png is 60 x 50 pixels, but its image 60 x 40",
    ),
    "no labelme": (lambda content: content.pop("shapes"), "labelme's file lacks 'shapes'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tmp_path: Path, capsys, case: str) -> None:
    change, message = BROKEN[case]
    content = file_of("a.png", [shape("car", TRIANGLE)])
    change(content)
    path = write(tmp_path / "in", "a.json", content)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "in" / "a.png")
    words = ["labelme", tmp_path / "in", "--classes", "car", *to(tmp_path / "out")]
    assert convert(*words) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith(str(path.parent))
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_cut_and_doubled_files_are_named(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in"
    path = write(folder, "a.json", file_of("a.png", [shape("car", TRIANGLE)]))
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    copy = folder / "b.json"
    copy.write_text(path.read_text())
    assert convert("labelme", folder, *to(tmp_path / "out")) == 1
    assert "duplicate image file_name 'a.png': keep one of them" in capsys.readouterr().err
    copy.write_text(path.read_text()[:90])
    assert convert("labelme", folder, *to(tmp_path / "out")) == 1
    assert f"{copy}: not a JSON file" in capsys.readouterr().err


def test_folders_without_files_are_named(tmp_path: Path, capsys) -> None:
    assert convert("labelme", tmp_path / "in", *to(tmp_path / "out")) == 1
    assert f"{tmp_path}/in: no such folder; check" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    assert convert("labelme", tmp_path / "in", *to(tmp_path / "out")) == 1
    assert f"{tmp_path}/in: there is no JSON file; check" in capsys.readouterr().err
