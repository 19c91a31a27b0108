"""Data sets listed in a file."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from crbp_d2.data import DatasetError, register_from_file

from .panoptic_data import write_panoptic


def entry(**changes: object) -> dict:
    return {
        "name": "listed",
        "images": "data/images",
        "panoptic_json": "data/panoptic.json",
        "panoptic_pngs": "data/pngs",
        **changes,
    }


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_registers_relative_to_the_file(tmp_path: Path, ending: str) -> None:
    write_panoptic(tmp_path / "data")
    names = [f"listed in {ending} {number}" for number in (1, 2)]
    listing = tmp_path / f"data.{ending}"
    listing.write_text(json.dumps([entry(name=names[0]), entry(name=names[1], cache="cache")]))
    assert register_from_file(listing) == names
    assert len(DatasetCatalog.get(names[1])) == 3
    assert list((tmp_path / "cache").glob("panoptic-*/stuff/*.png"))
    # Each process of a distributed run, and each rerun of a notebook cell, registers again.
    assert register_from_file(listing) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[unclosed", "not a YAML file"),
        ("{}", "must be a list of data sets"),
        ("- just a name", "data set 1: must have the keys name, images"),
        (json.dumps([entry(), {"name": "x"}]), "data set 2: lacks the key 'images'"),
        (json.dumps([entry(pngs="x")]), "unknown key 'pngs'; allowed are name, images"),
        (json.dumps([entry(images=3)]), "'images' is 3, must be a string"),
        (json.dumps([entry()]), "images: no such folder"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, message: str) -> None:
    listing = tmp_path / "data.yaml"
    listing.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        register_from_file(listing)
    assert str(tmp_path) in str(caught.value)
    assert "listed" not in DatasetCatalog


def test_missing_file() -> None:
    with pytest.raises(DatasetError, match="nowhere.yaml: no such file"):
        register_from_file("nowhere.yaml")
