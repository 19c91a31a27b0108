"""Data sets listed in a file."""

import json
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog

from crbp_d2.config import read_config
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


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two configs, one the base of the other, and a working directory beside it."""
    folder = tmp_path / "there"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (folder / "base.yaml").write_text("DATASETS:\n  FILE: sets/data.yaml\n")
    (folder / "below" / "own.yaml").write_text("_BASE_: ../base.yaml\nSEED: 3\n")
    return folder


def put(folder: Path) -> Path:
    """The listing below a folder."""
    (folder / "sets").mkdir()
    listing = folder / "sets" / "data.yaml"
    listing.write_text("[]")
    return listing


@pytest.mark.parametrize("config", ["base.yaml", "below/own.yaml"])
def test_a_file_is_found_beside_the_config_that_names_it(there: Path, config: str) -> None:
    listing = put(there)
    for path in (there / config, Path("..", "there", config)):
        assert str(listing) == read_config(str(path)).DATASETS.FILE


def test_of_several_bases_that_counts_whose_file_holds(there: Path) -> None:
    listing = put(there)
    (there / "below" / "other.yaml").write_text("DATASETS: {FILE: absent.yaml}\n")
    for bases, found in (
        (["other.yaml", "../base.yaml"], str(listing)),
        (["../base.yaml", "other.yaml"], "absent.yaml"),
    ):
        (there / "below" / "own.yaml").write_text(yaml.safe_dump({"_BASE_": bases}))
        assert found == read_config(str(there / "below" / "own.yaml")).DATASETS.FILE


def test_the_working_directory_comes_first(there: Path) -> None:
    put(there)
    put(Path.cwd())
    assert read_config(str(there / "base.yaml")).DATASETS.FILE == "sets/data.yaml"


def test_a_path_of_the_command_line_begins_at_the_working_directory(there: Path) -> None:
    put(there)
    words = ["DATASETS.FILE", "sets/data.yaml"]
    assert read_config(str(there / "base.yaml"), words).DATASETS.FILE == "sets/data.yaml"


def test_one_that_is_nowhere_is_told_with_both_places(there: Path) -> None:
    path = read_config(str(there / "below" / "own.yaml")).DATASETS.FILE
    with pytest.raises(DatasetError, match="at the working directory, or in a config beside that"):
        register_from_file(path)
