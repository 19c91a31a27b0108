"""Whatever is wrong is named, with the file and the cure, and nothing is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.data import DatasetError, PanopticSource, prepare
from crbp_d2.data.validate import Problems

from .panoptic_data import CROWD, CUP, DOG, ROAD, SKY, Written, segment_ids, write_panoptic


def edit(change: Callable[[dict], None]) -> Callable[[Written], None]:
    """Damages the JSON."""

    def damage(data: Written) -> None:
        content = data.read()
        change(content)
        data.write(content)

    return damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_ids(data: Written, ids: np.ndarray) -> None:
    Image.fromarray(id2rgb(ids)).save(data.pngs / "0.png")


def empty_all(content: dict) -> None:
    for entry in content["annotations"]:
        entry["segments_info"] = []


def add_stuff(content: dict) -> None:
    content["categories"] += [
        {"id": 100 + number, "name": f"stuff {number}", "isthing": 0} for number in range(254)
    ]


DAMAGE: dict[str, tuple[Callable[[Written], object], str]] = {
    "no JSON": (lambda data: data.json.unlink(), "panoptic.json: no such file"),
    "no images": (lambda data: data.images.rename(data.folder / "x"), "images: no such folder"),
    "no PNGs": (lambda data: data.pngs.rename(data.folder / "x"), "pngs: no such folder"),
    "image missing": (lambda data: (data.images / "1.jpg").unlink(), "images/1.jpg: no such file"),
    "PNG missing": (lambda data: (data.pngs / "2.png").unlink(), "pngs/2.png: no such file"),
    "not JSON": (lambda data: data.json.write_text('{"images": ['), "panoptic.json: not a JSON"),
    "JSON list": (lambda data: data.write([]), "top level must be an object"),
    "instances JSON": (
        edit(lambda content: content["annotations"][0].pop("segments_info")),
        r"annotations\[0\] lacks 'segments_info'",
    ),
    "no categories": (edit(lambda content: content.pop("categories")), "'categories' must be a"),
    "empty set": (
        edit(lambda content: content.update(images=[], annotations=[])),
        "'images' is empty",
    ),
    "nothing labelled": (edit(empty_all), "no image has a segment"),
    "not thing nor stuff": (
        edit(lambda content: content["categories"][0].update(isthing="yes")),
        r"categories\[0\]: 'isthing' is 'yes', must be 1 for things, 0 for stuff",
    ),
    "void segment": (
        edit(lambda content: content["annotations"][0]["segments_info"][0].update(id=0)),
        r"segments_info\[0\]: 'id' is 0",
    ),
    "path outside": (
        edit(lambda content: content["annotations"][0].update(file_name="../0.png")),
        "must be a path inside the folder of PNGs",
    ),
    "unknown category": (
        edit(lambda content: content["annotations"][0]["segments_info"][0].update(category_id=8)),
        f"0.png: segment {DOG} has the unknown category id 8",
    ),
    "unknown image": (
        edit(lambda content: content["annotations"][0].update(image_id=77)),
        "0.png: unknown image id 77",
    ),
    "no annotation": (
        edit(lambda content: content["annotations"].pop(1)),
        "image 1.jpg has no annotation",
    ),
    "duplicate image id": (
        edit(lambda content: content["images"][1].update(id=10)),
        "duplicate image id 10",
    ),
    "duplicate image file": (
        edit(lambda content: content["images"][1].update(file_name="0.jpg")),
        "duplicate image file_name '0.jpg'",
    ),
    "duplicate PNG": (
        edit(lambda content: content["annotations"][1].update(file_name="0.png")),
        "duplicate annotation file_name '0.png'",
    ),
    "duplicate annotation": (
        edit(lambda content: content["annotations"][1].update(image_id=10)),
        "duplicate annotation of image id 10",
    ),
    "duplicate segment id": (
        edit(lambda content: content["annotations"][0]["segments_info"][1].update(id=DOG)),
        f"0.png: duplicate segment id {DOG}",
    ),
    "duplicate category id": (
        edit(lambda content: content["categories"][1].update(id=3)),
        "duplicate category id 3",
    ),
    "too much stuff": (edit(add_stuff), "256 stuff categories: at most 254"),
    "image of other size": (
        lambda data: Image.new("RGB", (30, 40)).save(data.images / "0.jpg"),
        "images/0.jpg: is 30 x 40 pixels, the JSON's entry of the image says 60 x 40",
    ),
    "PNG of other size": (
        lambda data: save_ids(data, segment_ids()[:, :30]),
        "pngs/0.png: is 30 x 40 pixels",
    ),
    "PNG with palette": (
        lambda data: Image.new("P", (60, 40)).save(data.pngs / "0.png"),
        "pngs/0.png: pixels of mode P",
    ),
    "segment not in PNG": (
        lambda data: save_ids(data, np.where(segment_ids() == CUP, 0, segment_ids())),
        f"pngs/0.png: segment {CUP} of the JSON has no pixel",
    ),
    "segment not in JSON": (
        lambda data: save_ids(data, np.where(segment_ids() == CUP, 44, segment_ids())),
        "pngs/0.png: pixels of segment 44, which the JSON lacks",
    ),
    "truncated image": (
        lambda data: truncate(data.images / "2.jpg"),
        "images/2.jpg: can't be read",
    ),
    "truncated PNG": (lambda data: truncate(data.pngs / "2.png"), "pngs/2.png: can't be read"),
    "not an image": (
        lambda data: (data.images / "0.jpg").write_text("hello"),
        "images/0.jpg: can't be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_problem_is_named_and_nothing_written(tmp_path: Path, case: str) -> None:
    data = write_panoptic(tmp_path / "data")
    damage, message = DAMAGE[case]
    damage(data)
    before = sorted(tmp_path.rglob("*"))
    cache = tmp_path / "cache"
    with pytest.raises(DatasetError, match=message) as caught:
        prepare(PanopticSource.locate(**data.arguments(), cache=cache), workers=1)
    assert str(data.folder) in str(caught.value)
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path for path in left if path != cache and path.suffix != ".lock"] == []


def test_all_problems_are_counted_and_ten_shown(tmp_path: Path) -> None:
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    for entry in content["annotations"]:
        for segment in entry["segments_info"]:
            segment["category_id"] = 99
    data.write(content)
    with pytest.raises(DatasetError) as caught:
        prepare(PanopticSource.locate(**data.arguments()))
    message = str(caught.value)
    assert "15 problems" in message and "and 5 more" in message
    assert len(re.findall("unknown category", message)) == Problems.SHOWN


def test_problems_of_several_images_come_together(tmp_path: Path) -> None:
    data = write_panoptic(tmp_path / "data")
    truncate(data.images / "0.jpg")
    save_ids(data, np.where(np.isin(segment_ids(), [CROWD, SKY, ROAD]), 0, segment_ids()))
    (data.pngs / "2.png").unlink()
    with pytest.raises(DatasetError, match="5 problems"):
        prepare(PanopticSource.locate(**data.arguments()), workers=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("annotations"), "not in COCO's instance format"),
        (lambda content: content["images"].pop(), r"1 images missing \(ids 12"),
        (lambda content: content["categories"].pop(), r"1 categories missing \(ids 1"),
        (
            lambda content: content["images"].append({"id": 5}),
            r"1 images not in the panoptic JSON \(ids 5",
        ),
    ],
)
def test_instances_must_fit(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    data = write_panoptic(tmp_path / "data")
    content = {**data.read(), "annotations": []}
    content["categories"] = content["categories"][:2]
    change(content)
    instances = tmp_path / "instances.json"
    instances.write_text(json.dumps(content))
    source = PanopticSource.locate(**data.arguments(), instances_json=instances)
    with pytest.raises(DatasetError, match=message):
        prepare(source)
