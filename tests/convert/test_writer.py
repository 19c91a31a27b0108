"""What is written: whole or not at all, again after an interruption, and never over other files."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from crbp_d2.data import DatasetError, ensure_prepared, register_from_file
from crbp_d2.data.panoptic import require_same_classes
from crbp_d2.data.prepare import prepare
from crbp_d2.data.source import PanopticSource
from tests.data.panoptic_data import HEIGHT, WIDTH, Written, write_panoptic
from tests.data.real_data import SHARED, needs_real_data
from tests.data.test_cache import contents
from tests.data.test_tools import tool

from .apart import (
    KINDS,
    Segment,
    called,
    convert,
    of_data,
    of_output,
    result,
    to,
    write_instances,
    write_labels,
)


@pytest.fixture
def data(tmp_path: Path) -> Written:
    data = write_panoptic(tmp_path / "data")
    write_instances(data, tmp_path / "instances.json")
    return data


def call(data: Written, out: Path, name: str = "back", *more: str) -> list[object]:
    given = data.folder.parent / "instances.json"
    return ["instances", given, data.images, *KINDS, *to(out, name), *more]


def test_both_splits_stand_in_the_file_and_train_together(
    data: Written, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A split that lacks classes has them all the same, under the same numbers."""
    out = tmp_path / "out ü"
    train, val = (f"{request.node.name} {split}" for split in ("train", "val"))
    assert convert(*call(data, out, train)) == 0
    content = json.loads((tmp_path / "instances.json").read_text())
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 1]
    content["categories"] = [
        {"id": number, "name": one["name"]}
        for number, one in enumerate(content["categories"])
        if one["name"] != "dog"
    ]
    ids = {3: 0, 12: 2, 7: 3}
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert convert("instances", tmp_path / "instances.json", data.images, *to(out, val)) == 0
    assert result(out, val)["categories"] == result(out, train)["categories"]
    assert yaml.safe_load((out / "datasets.yaml").read_text())[1] == {
        "name": val,
        "images": "../data/images",
        "panoptic_json": f"panoptic_{val}.json",
        "panoptic_pngs": f"panoptic_{val}",
    }
    assert register_from_file(out / "datasets.yaml") == [train, val]
    for name in (train, val):
        ensure_prepared(name, workers=1)
        assert len(DatasetCatalog.get(name)) == 3
    require_same_classes([train, val])


@pytest.mark.parametrize("form", ["instances", "labels"])
def test_several_workers_write_the_same(data: Written, tmp_path: Path, form: str) -> None:
    write_labels(data, tmp_path / "maps", {("dog", 0): 1, ("sky", 0): 7, ("cup", 1): 2})
    words = {
        "instances": call(data, tmp_path / "1"),
        "labels": ["labels", data.images, tmp_path / "maps", "--rule", "cityscapes"],
    }[form]
    for workers in (1, 2):
        more = [*to(tmp_path / str(workers)), f"--workers={workers}"]
        assert called("convert", *words, *more) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_files_of_folders_move_with_their_images(data: Written, tmp_path: Path) -> None:
    convert(*call(data, tmp_path / "out", "moved"))
    (tmp_path / "elsewhere").mkdir()
    for name in ("out", "data", "instances.json"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    register_from_file(tmp_path / "elsewhere" / "out" / "datasets.yaml")
    assert len(DatasetCatalog.get("moved")) == 3
    moved = Written(tmp_path / "elsewhere" / "data")
    assert convert(*call(moved, tmp_path / "elsewhere" / "out", "moved")) == 0
    DatasetCatalog.remove("moved")
    MetadataCatalog.remove("moved")


def test_nothing_is_written_for_data_with_a_mistake_and_the_call_can_be_repeated(
    data: Written, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    image = (data.images / "2.jpg").read_bytes()
    (data.images / "2.jpg").write_bytes(b"hello")
    assert convert(*call(data, out)) == 1
    assert f"{data.images}/2.jpg: can't be read" in capsys.readouterr().err
    assert not list(out.glob("*"))
    (data.images / "2.jpg").write_bytes(image)
    assert convert(*call(data, out)) == 0
    assert of_output(out) == of_data(data)


def lose(*names: str) -> Callable[[Path], None]:
    """As if the call had been killed before these were there."""

    def damage(out: Path) -> None:
        for name in names:
            path = out / name
            path.rename(out / f".{name}.making-killed")

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: None,
        lose("datasets.yaml"),
        lose("datasets.yaml", "panoptic_back"),
        lambda out: (out / ".panoptic_back.json.part").write_text("{"),
    ],
)
def test_an_interrupted_call_can_be_repeated(
    data: Written, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    out = tmp_path / "out"
    convert(*call(data, out))
    made = {name: content for name, content in contents(out).items() if "ting" not in name}
    damage(out)
    assert convert(*call(data, out)) == 0
    assert of_output(out) == of_data(data)
    assert made.items() <= contents(out).items()
    assert not (out / ".panoptic_back.making-killed").exists()


def killed_at(nth: int, words: list[object]) -> int:
    """The exit code of a call that is killed when a file or folder gets its name the nth time."""

    def work() -> None:
        seen = 0

        def hook(event: str, _: object) -> None:
            nonlocal seen
            if event != "os.rename":
                return
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        convert(*words)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def read_back(data: Written, out: Path) -> dict[str, set[Segment]] | str:
    """The segments of the output as training reads it; or the message about it."""
    source = PanopticSource.locate(
        images=data.images,
        panoptic_json=out / "panoptic_back.json",
        panoptic_pngs=out / "panoptic_back",
        cache=out / "cache",
    )
    try:
        prepare(source, workers=1)
    except DatasetError as error:
        return str(error)
    return of_output(out)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_moment_leaves_what_is_whole_or_told(
    data: Written, tmp_path: Path, again: bool
) -> None:
    assert convert(*call(data, tmp_path / "before")) == 0
    given = json.loads((tmp_path / "instances.json").read_text())
    given["annotations"].pop()
    (tmp_path / "instances.json").write_text(json.dumps(given))
    assert convert(*call(data, tmp_path / "after")) == 0
    old, new = of_output(tmp_path / "before"), of_output(tmp_path / "after")
    assert old != new
    found = []
    for nth in range(1, 10):
        out = tmp_path / str(nth)
        if again:
            shutil.copytree(tmp_path / "before", out)
        if killed_at(nth, call(data, out)) == 0:
            break
        found.append(read_back(data, out))
        assert convert(*call(data, out)) == 0
        assert of_output(out) == new
    told = f"{tmp_path}/{{}}/panoptic_back: no such folder, as after a conversion that was cut off"
    told += "; call datasets/convert.py again as before"
    absent = f"{tmp_path}/1/panoptic_back: no such folder; check the path"
    first = old if again else absent
    third = told.format(3) if again else new
    assert found == [first, told.format(2), third]


def test_the_same_call_takes_what_has_changed(data: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(*call(data, out))
    given = json.loads((tmp_path / "instances.json").read_text())
    given["annotations"].pop()
    (tmp_path / "instances.json").write_text(json.dumps(given))
    assert convert(*call(data, out)) == 0
    assert sum(map(len, of_output(out).values())) == len(given["annotations"])


OTHERS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "another order": (
        lambda out: None,
        ["--order", "sky"],
        "panoptic_back.json: was made with order [], not ['sky']; remove it and",
    ),
    "JSON of others": (
        lambda out: (out / "panoptic_back.json").write_text('{"info": {"year": 2020}}'),
        [],
        "panoptic_back.json: was not written by this tool; remove it and",
    ),
    "PNGs alone": (
        lambda out: (out / "panoptic_back.json").unlink(),
        [],
        "panoptic_back: is there without panoptic_back.json, so it was not written by",
    ),
    "other data of the name": (
        lambda out: (out / "datasets.yaml").write_text(
            "[{name: back, images: x, panoptic_json: y, panoptic_pngs: z}]"
        ),
        [],
        "datasets.yaml: has other data under the name 'back'; choose another --name",
    ),
    "broken list": (
        lambda out: (out / "datasets.yaml").write_text("{}"),
        [],
        "datasets.yaml: must be a list of data sets",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_output_of_others_is_left_alone(data: Written, tmp_path: Path, capsys, case: str) -> None:
    change, more, message = OTHERS[case]
    out = tmp_path / "out"
    convert(*call(data, out))
    change(out)
    before = contents(out)
    assert convert(*call(data, out, "back", *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{out}/{message}") and error.count("\n") == 1
    assert contents(out) == before


@pytest.mark.parametrize(
    "before",
    [
        "# mine\n- {name: mine, images: a, panoptic_json: b, panoptic_pngs: c}",
        "[{name: mine, images: a, panoptic_json: b, panoptic_pngs: c}]\n",
        '[{"name": "mine", "images": "a", "panoptic_json": "b", "panoptic_pngs": "c"}]',
    ],
)
def test_other_entries_of_the_file_stay(data: Written, tmp_path: Path, before: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "datasets.yaml").write_text(before)
    assert convert(*call(data, out)) == 0
    after = (out / "datasets.yaml").read_text()
    assert [entry["name"] for entry in yaml.safe_load(after)] == ["mine", "back"]
    assert ("# mine" in after) == ("# mine" in before)
    assert convert(*call(data, out)) == 0
    assert (out / "datasets.yaml").read_text() == after


def test_png_names_of_images_that_are_called_alike_differ(tmp_path: Path) -> None:
    for kind in ("images", "maps"):
        (tmp_path / kind).mkdir()
    for name in ("a.jpg", "A.png", "a.b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
        Image.new("L", (WIDTH, HEIGHT), 1).save(tmp_path / "maps" / f"{name}.png")
    words = [tmp_path / "images", tmp_path / "maps", "--rule", "one-class", "x"]
    patterns = ["--images", "{id}", "--labels", "{id}.png"]
    assert convert("labels", *words, *patterns, *to(tmp_path / "out")) == 0
    names = {path.name for path in (tmp_path / "out" / "panoptic_back").iterdir()}
    assert names == {"a.jpg.png", "A.png.png", "a.b.png"}


def prepare_words(data: Written, given: Path) -> list[str]:
    return [f"--images={data.images}", f"--panoptic-json={given}", f"--panoptic-pngs={data.pngs}"]


@pytest.mark.parametrize("with_pngs", [True, False])
def test_prepare_panoptic_names_the_command_for_instances(
    data: Written, tmp_path: Path, capsys, with_pngs: bool
) -> None:
    if not with_pngs:
        data.pngs.rename(tmp_path / "away")
    given = tmp_path / "instances.json"
    assert called("prepare_panoptic", *prepare_words(data, given)) == 1
    error = capsys.readouterr().err
    assert f"{given}: in COCO's instance format, not in the panoptic one; convert it by" in error
    assert f"datasets/convert.py instances {given} IMAGES --out FOLDER --name NAME" in error


@pytest.mark.parametrize("name", ["instances", "masks", "labels", "labelme"])
def test_help_of_every_format_has_an_example(name: str, capsys) -> None:
    for words in (["--help"], [name, "--help"]):
        with pytest.raises(SystemExit) as stopped:
            tool("convert")(words)
        assert stopped.value.code == 0
        assert f"datasets/convert.py {name if words[0] == name else 'instances'} " in (
            capsys.readouterr().out
        )


@needs_real_data
def test_facades_lie_below_their_windows(tmp_path: Path, capsys) -> None:
    """Polygons of real photographs that overlap, and a root class that nothing uses."""
    content: dict[str, Any] = json.loads((SHARED / "facades/instances_val.json").read_text())
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    given = tmp_path / "instances.json"
    given.write_text(json.dumps(content))
    images, out = SHARED / "facades" / "val", tmp_path / "out"
    stuff = ["facade", "street", "vegetation", "non-building-infrastructure"]
    assert convert("instances", given, images, "--stuff", *stuff, *to(out)) == 0
    assert len(result(out)["categories"]) == 10
    windows = {
        image_id: sum(one["category_id"] == 10 for one in segments)
        for image_id, segments in (
            (one["image_id"], one["segments_info"]) for one in result(out)["annotations"]
        )
    }
    for image_id, number in windows.items():
        drawn = [one for one in content["annotations"] if one["image_id"] == image_id]
        assert number == sum(one["category_id"] == 10 for one in drawn) > 0
    words = [f"--images={images}", f"--panoptic-json={out}/panoptic_back.json"]
    capsys.readouterr()
    assert called("prepare_panoptic", *words, f"--panoptic-pngs={out}/panoptic_back") == 0
    assert "6 thing and 4 stuff categories" in capsys.readouterr().out


def test_a_file_in_the_place_of_the_folder_ends_in_a_line(
    data: Written, tmp_path: Path, capsys
) -> None:
    words = [*call(data, tmp_path / "out"), "--out", tmp_path / "instances.json"]
    assert called("convert", *words) == 1
    error = capsys.readouterr().err.strip()
    assert "instances.json: is a file; choose a folder" in error and "\n" not in error


def test_a_missing_folder_of_images_is_named_once(data: Written, tmp_path: Path, capsys) -> None:
    data.images.rename(tmp_path / "away")
    assert convert(*call(data, tmp_path / "out")) == 1
    assert capsys.readouterr().err == f"{data.images}: no such folder; check the path\n"
