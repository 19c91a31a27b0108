"""Names of files, images and colours as other people's programs write them."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.config import add_crbp_config
from crbp_d2.data import (
    DatasetError,
    PanopticSource,
    build_test_loader,
    build_train_loader,
    ensure_prepared,
    prepare,
    register_panoptic,
)
from crbp_d2.data.derive import stuff_map_name
from crbp_d2.data.pathfinder.folder import find_images
from crbp_d2.evaluation import build_evaluator
from tests.evaluation.models import tiny_config
from tests.evaluation.test_annotations import assert_perfect, evaluate

from .panoptic_data import CUP, DOG, ROAD, SKY, Written, write_panoptic
from .test_bad_data import edit
from .test_classes import of_category


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def rename(data: Written, kind: str, names: list[str]) -> None:
    """Gives the images or the PNGs other names, in the folder and in the JSON."""
    folder = data.images if kind == "images" else data.pngs
    content = data.read()
    for entry, name in zip(content[kind], names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry["file_name"]).rename(folder / name)
        entry["file_name"] = name
    data.write(content)


@pytest.mark.parametrize(
    "names",
    [
        ["scene.000", "scene.001", "scene.002"],
        ["scene", "scene.png", "scene..png"],
        ["scene.PNG", "scene.png", "scene.png.png"],
        ["0/same", "1/same", "2/same"],
        ["0/same.png", "1/same.png", "2/same.png"],
        ["with blank.v1.png", "#1?.png", "ü.png"],
    ],
)
def test_any_names_of_files_go_through(
    data: Written, tmp_path: Path, request: pytest.FixtureRequest, names: list[str]
) -> None:
    for kind in ("images", "annotations"):
        rename(data, kind, names)
    register_panoptic(request.node.name, **data.arguments())
    assert_perfect(evaluate(request.node.name, tmp_path / "output"))
    records = DatasetCatalog.get(request.node.name)
    assert len({record["sem_seg_file_name"] for record in records}) == 3


def test_names_of_stuff_maps_are_those_of_the_pngs() -> None:
    assert stuff_map_name("000000000139.png") == "000000000139.png"
    assert stuff_map_name("a/b.c.png") == "a/b.c.png"


REFUSED: dict[str, tuple[str, str]] = {
    "backslash": (
        "a\\b.jpg",
        r"'a\\\\b.jpg', must be a path inside .*, its folders separated by /",
    ),
    "drive": ("C:/0.jpg", "'C:/0.jpg', must be a path inside the folder of images"),
    "absolute": ("/0.jpg", "'/0.jpg', must be a path inside the folder of images"),
    "folder above": ("../0.jpg", "'../0.jpg', must be a path inside the folder of images"),
    "line break": ("0\n.jpg", r"'0\\n.jpg', must be a path inside the folder of images"),
    "in capitals": ("0.JPG", r"0.JPG: no such file; there is '0.jpg', but '0.JPG' is asked for"),
    "too long": (300 * "0", "no such file"),
    "below a file": ("1.jpg/0.jpg", "1.jpg/0.jpg: no such file"),
    "the same otherwise written": ("./1.jpg", "duplicate image file_name '1.jpg'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_names_are_refused(data: Written, case: str) -> None:
    name, message = REFUSED[case]
    edit(lambda content: content["images"][0].update(file_name=name))(data)
    with pytest.raises(DatasetError, match=message):
        prepare(PanopticSource.locate(**data.arguments()), workers=1)


def test_accents_that_are_encoded_otherwise_are_told(data: Written) -> None:
    """As in archives from a Mac; the two names look the same."""
    rename(data, "images", [unicodedata.normalize("NFD", "é.jpg"), "1.jpg", "2.jpg"])
    edit(lambda content: content["images"][0].update(file_name="é.jpg"))(data)
    with pytest.raises(DatasetError, match=r"there is 'e\\u0301.jpg', but '\\xe9.jpg' is asked"):
        prepare(PanopticSource.locate(**data.arguments()), workers=1)


def test_ids_of_two_types_are_refused(data: Written) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1]["id"] = content["annotations"][1]["image_id"] = "10"

    edit(change)(data)
    with pytest.raises(DatasetError, match="image ids are numbers and strings, as 10 and '10'"):
        prepare(PanopticSource.locate(**data.arguments()))


def test_images_with_text_as_ids_train_and_are_scored(
    data: Written, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def change(content: dict[str, Any]) -> None:
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            image["id"] = annotation["image_id"] = f"scan {image['id']}"

    edit(change)(data)
    name = request.node.name
    register_panoptic(name, **data.arguments())
    assert_perfect(evaluate(name, tmp_path / "output"))
    cfg = tiny_config(name)
    add_crbp_config(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        sum(model(next(iter(build_train_loader(cfg)))).values()).backward()
    loader = build_test_loader(cfg, name)
    results = inference_on_dataset(model, loader, build_evaluator(cfg, name))
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100


def test_files_with_a_byte_order_mark_are_read(
    data: Written, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data.json.write_text(json.dumps(data.read()), encoding="utf-8-sig")
    register_panoptic(request.node.name, **data.arguments())
    assert_perfect(evaluate(request.node.name, tmp_path / "output"))
    image = tmp_path / "curv" / "imgs" / "1" / "sample_0.png"
    listing = tmp_path / "list.txt"
    listing.write_text("curv/imgs/1/sample_0.png 0\n", encoding="utf-8-sig")
    assert find_images(tmp_path, listing)[0][0] == image


@pytest.mark.parametrize(
    ("colour", "expected"),
    [("#ff8000", [255, 128, 0]), ("red", [255, 0, 0]), ([1, 2, 3], [1, 2, 3]), (None, None)],
)
def test_colours_are_read_as_drawing_needs_them(
    data: Written, request: pytest.FixtureRequest, colour: object, expected: object
) -> None:
    edit(of_category(1, color=colour))(data)
    register_panoptic(request.node.name, **data.arguments())
    metadata = MetadataCatalog.get(request.node.name)
    assert (metadata.get("thing_colors") or [None])[0] == expected
    assert ensure_prepared(request.node.name) is not None


def test_spellings_of_a_path_share_a_cache(
    data: Written, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(data.folder)
    monkeypatch.chdir(data.images)
    spellings: list[Callable[[Path], Path | str]] = [
        lambda path: path,
        lambda path: f"../{path.name}",
        lambda path: f"{path.parent}/images/..//{path.name}",
        lambda path: tmp_path / "link" / path.name,
    ]
    sources = [
        PanopticSource.locate(**{key: spell(path) for key, path in data.arguments().items()})
        for spell in spellings
    ]
    assert len(set(sources)) == 1
    # So it isn't another data set of that name, either.
    for spell in spellings:
        arguments = {key: spell(path) for key, path in data.arguments().items()}
        register_panoptic(request.node.name, **arguments)
    # A folder itself may be given from within.
    inside = PanopticSource.locate(**{**data.arguments(), "images": "."})
    assert inside == sources[0]


def test_damaged_manifest_is_made_anew(data: Written) -> None:
    source = PanopticSource.locate(**data.arguments())
    prepare(source)
    (source.derived / "manifest.json").write_text('{"format": ')
    prepare(source)
    assert json.loads((source.derived / "manifest.json").read_text())["left_out"] == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3), (65, 31)])
def test_any_size_of_image(
    tmp_path: Path, request: pytest.FixtureRequest, height: int, width: int
) -> None:
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    rng = np.random.default_rng(height)
    ids = rng.choice([DOG, CUP, SKY, ROAD], (height, width))
    ids[0, 0] = DOG
    present = np.unique(ids)
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        image.update(height=height, width=width)
        annotation["segments_info"] = [
            segment for segment in annotation["segments_info"] if segment["id"] in present
        ]
        Image.fromarray(id2rgb(ids)).save(data.pngs / annotation["file_name"])
        Image.new("RGB", (width, height)).save(data.images / image["file_name"])
    data.write(content)
    register_panoptic(request.node.name, **data.arguments())
    results = evaluate(request.node.name, tmp_path / "output")
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100, abs=0.01)
