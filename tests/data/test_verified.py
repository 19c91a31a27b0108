"""What was made before is looked at before it is used, and made anew where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crbp_d2.data import PanopticSource, ShapesConfig, make_shapes, prepare
from crbp_d2.data.pathfinder import TINY, write_images
from crbp_d2.data.prepare import read_categories
from crbp_d2.data.validate import DatasetError

from .mixed_data import write_mixed
from .test_cache import contents

Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _without(key: str) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return damage


DAMAGE: dict[str, Damage] = {
    "missing": Path.unlink,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
OF_A_RECORD: dict[str, Damage] = {
    **{kind: DAMAGE[kind] for kind in ("missing", "cut", "empty", "a folder")},
    **{text: lambda path, text=text: path.write_text(text) for text in ("null", "[]", "{}", "7")},
    "nested": lambda path: path.write_text("[" * 100_000),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{"),
    **{f"no {key}": _without(key) for key in ("files", "sizes", "categories", "checksum")},
    "other files": lambda path: path.write_text(path.read_text().replace('"3.png"', '"x"')),
}


@pytest.fixture
def source(tmp_path: Path) -> PanopticSource:
    return PanopticSource.locate(**write_mixed(tmp_path / "data").arguments())


@pytest.mark.parametrize("file", ["stuff/2.png", "instances.json", "panoptic.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_derived_file_is_derived_anew(
    source: PanopticSource, file: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = prepare(source, workers=1)
    whole = contents(source.derived)
    DAMAGE[kind](source.derived / file)
    assert prepare(source, workers=1) == manifest
    assert contents(source.derived) == whole
    assert f"{source.derived / file}: missing or cut" in caplog.text


@pytest.mark.parametrize("kind", OF_A_RECORD)
def test_a_damaged_manifest_counts_as_none(source: PanopticSource, kind: str) -> None:
    manifest = prepare(source, workers=1)
    whole = contents(source.derived)
    OF_A_RECORD[kind](source.derived / "manifest.json")
    assert read_categories(source) == manifest.categories
    assert prepare(source, workers=1) == manifest
    assert contents(source.derived) == whole


def test_a_file_in_the_place_of_the_derived_folder_is_no_cache(source: PanopticSource) -> None:
    source.derived.parent.mkdir()
    source.derived.write_text("a file")
    prepare(source, workers=1)
    assert source.measured_json.is_file()


@pytest.mark.parametrize("file", ["panoptic.json", "images/000001.jpg", "panoptic/000000.png"])
@pytest.mark.parametrize("kind", ["missing", "cut", "empty"])
def test_damaged_shapes_are_drawn_anew(tmp_path: Path, file: str, kind: str) -> None:
    def make() -> dict[str, bytes]:
        config = ShapesConfig(size=48)
        make_shapes(tmp_path / "set", scenes=2, seed=3, config=config, workers=1)
        return contents(tmp_path / "set")

    whole = make()
    DAMAGE[kind](tmp_path / "set" / file)
    assert make() == whole


def test_shapes_with_a_damaged_record_are_drawn_anew_but_not_what_others_wrote(
    tmp_path: Path,
) -> None:
    make_shapes(tmp_path / "set", scenes=1, seed=3, config=ShapesConfig(size=48), workers=1)
    whole = contents(tmp_path / "set")
    for damage in ("cut", "empty", "null", "[]"):
        OF_A_RECORD[damage](tmp_path / "set" / ".crbp_d2_shapes.json")
        make_shapes(tmp_path / "set", scenes=1, seed=3, config=ShapesConfig(size=48), workers=1)
        assert contents(tmp_path / "set") == whole
    others = tmp_path / "others"
    others.mkdir()
    (others / "panoptic.json").write_text("{")
    make_shapes(others, scenes=1, seed=3, workers=1)
    assert contents(others) == {"panoptic.json": b"{"}


@pytest.mark.parametrize("kind", ["missing", "cut", "empty", "longer"])
def test_damaged_pathfinder_images_are_drawn_anew(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "set", TINY, seed=2, count=3, workers=1)
    whole = contents(tmp_path / "set")
    folder = tmp_path / "set" / "curv_contour_length_6"
    for part in ("imgs", "seg"):
        DAMAGE[kind](folder / part / "1" / "sample_1.png")
    DAMAGE[kind](tmp_path / "set" / "curv_contour_length_6.txt")
    write_images(tmp_path / "set", TINY, seed=2, count=3, workers=1)
    assert contents(tmp_path / "set") == whole


@pytest.mark.parametrize("content", ["", "null", "[]", "{", "[" * 100_000])
def test_a_damaged_description_of_pathfinder_images_is_named(tmp_path: Path, content: str) -> None:
    write_images(tmp_path / "set", TINY, seed=2, count=1, workers=1)
    (tmp_path / "set" / "pathfinder.json").write_text(content)
    with pytest.raises(DatasetError, match=r"pathfinder.json: damaged, .*; delete that folder, or"):
        write_images(tmp_path / "set", TINY, seed=2, count=1, workers=1)


def test_what_a_killed_call_left_behind_stops_no_later_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / ".pathfinder.json.part").write_bytes(b"{")
    write_images(folder, TINY, seed=1, count=1, workers=1)
    half = folder / "curv_contour_length_6" / "imgs" / "1" / ".sample_7.png.part"
    half.write_bytes(b"half an image")
    write_images(folder, TINY, seed=1, count=2, workers=1)
    assert not [name for name in contents(folder) if name.endswith(".part")]
