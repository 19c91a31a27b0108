"""Images that are not where the JSON has them: a file that may be meant is named, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from crbp_d2.data import DatasetError, PanopticSource, elsewhere, prepare
from tests.convert.apart import KINDS, convert, to, write_instances

from .panoptic_data import Written, write_panoptic


def as_pngs(data: Written) -> None:
    for path in sorted(data.images.iterdir()):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
        # Neither is an image.
        path.with_suffix(".json").write_text("{}")
        (data.images / path.stem).mkdir()


def one_below(data: Written) -> None:
    data.images.rename(data.folder / "moved")
    data.images.mkdir()
    (data.folder / "moved").rename(data.images / "2024")


def one_above(data: Written) -> None:
    content = data.read()
    for image in content["images"]:
        image["file_name"] = f"photos/{image['file_name']}"
    data.write(content)


CASES: dict[str, tuple[Callable[[Written], None], str]] = {
    "other endings": (
        as_pngs,
        "for '0.jpg' there is '0.png'; correct the names in {json}, or move or rename the images",
    ),
    "folder below": (
        one_below,
        "for '0.jpg' there is '2024/0.jpg'; give the folder {images}/2024",
    ),
    "folder above": (
        one_above,
        "for 'photos/0.jpg' there is '0.jpg'; correct the names in {json}, or move or rename the",
    ),
}


def locate(data: Written) -> PanopticSource:
    return PanopticSource.locate(**data.arguments(), cache=data.folder / "cache")


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_may_be_meant_is_named(tmp_path: Path, capsys, case: str) -> None:
    change, message = CASES[case]
    data = write_panoptic(tmp_path / "data")
    change(data)
    write_instances(data, tmp_path / "instances.json")
    expected = f"{data.images}: has none of the images of {{}}, {message}"
    with pytest.raises(DatasetError) as caught:
        prepare(locate(data), workers=1)
    names = {"images": data.images, "json": data.json.name}
    assert str(caught.value).startswith(expected.format(data.json, **names))
    assert not list((data.folder / "cache").glob("panoptic-*"))
    given = tmp_path / "instances.json"
    assert convert("instances", given, data.images, *KINDS, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith(expected.format(given, images=data.images, json=given.name))
    assert error.count("\n") == 1 and not list((tmp_path / "out").glob("*"))


def test_a_single_image_in_its_place_means_that_the_folder_is_right(tmp_path: Path) -> None:
    data = write_panoptic(tmp_path / "data")
    for number in (1, 2):
        path = data.images / f"{number}.jpg"
        path.rename(path.with_suffix(".jpeg"))
    with pytest.raises(DatasetError, match=r"2 problems\n.*images/1.jpg: no such file; add the im"):
        prepare(locate(data), workers=1)


def test_without_a_file_that_may_be_meant_each_image_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_panoptic(tmp_path / "data")
    one_below(data)
    # As of a disc that is given by mistake.
    monkeypatch.setattr(elsewhere, "MOST_FILES", 0)
    with pytest.raises(DatasetError, match=r"3 problems\n.*0.jpg: no such file; add the image"):
        prepare(locate(data), workers=1)
    monkeypatch.undo()
    shutil.rmtree(data.images)
    data.images.mkdir()
    with pytest.raises(DatasetError, match=r"3 problems\n.*0.jpg: no such file; add the image"):
        prepare(locate(data), workers=1)


def test_images_of_labelmes_files_are_looked_for_too(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "labelled"
    (folder / "photos").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "photos" / "a.png")
    shape = {"label": "dog", "points": [[1, 1], [9, 1], [9, 9]]}
    (folder / "a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": [shape]}))
    assert convert("labelme", folder, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"{folder}: has none of the images of {folder / 'a.json'}, for 'a.jpg' there is "
        "'photos/a.png'; correct the names in a.json"
    )
