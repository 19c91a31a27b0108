"""The file of data sets beside what was converted, to which every call adds its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..fields import Json
from ..from_file import read_entries
from ..storage import write_whole
from ..validate import DatasetError, converted_by, read_json, read_panoptic_json

LISTING = "datasets.yaml"


def listed(folder: Path) -> list[Json]:
    """The entries of the file in a folder; none if there is no file.

    Raises:
        DatasetError: it is not of the form of `register_from_file`.
    """
    path = folder / LISTING
    return read_entries(path) if path.is_file() else []


def entry(name: str, images: Path, folder: Path) -> Json:
    """What the file says of a data set, its paths from the folder of the file."""
    return {
        "name": name,
        "images": Path(os.path.relpath(images.resolve(), folder.resolve())).as_posix(),
        "panoptic_json": panoptic_json(name),
        "panoptic_pngs": panoptic_pngs(name),
    }


def panoptic_json(name: str) -> str:
    """The name of a data set's JSON."""
    return f"panoptic_{name}.json"


def panoptic_pngs(name: str) -> str:
    """The name of a data set's folder of PNGs."""
    return f"panoptic_{name}"


def require_free(folder: Path, new: Json) -> None:
    """Refuse a name that other data have in the file.

    Raises:
        DatasetError: naming the file.
    """
    for old in listed(folder):
        if old["name"] == new["name"] and not new.items() <= old.items():
            raise DatasetError(
                f"{folder / LISTING}: has other data under the name {new['name']!r}; choose "
                "another --name, or remove that entry"
            )


@dataclass(frozen=True)
class Other:
    """Another data set of the file, which has set the classes.

    Attributes:
        path: of its JSON.
        categories: of that.
        call: the conversion that made it; None if that is not known.
    """

    path: Path
    categories: list[Json]
    call: Json | None


def other(folder: Path, name: str) -> Other | None:
    """The first other data set of the file whose JSON is there.

    Raises:
        DatasetError: that JSON can't be used.
    """
    for old in listed(folder):
        path = folder / str(old["panoptic_json"])
        if old["name"] != name and path.is_file():
            categories = read_panoptic_json(path)["categories"]
            return Other(path, categories, converted_by(read_json(path)))
    return None


def add(folder: Path, new: Json) -> None:
    """Enter a data set, unless it is there; what else the file says stays as it is."""
    path = folder / LISTING
    old = listed(folder)
    if new["name"] in (one["name"] for one in old):
        return
    before = path.read_text(encoding="utf-8-sig") if old else ""
    if before and not before.endswith("\n"):
        before += "\n"
    content = before + _dumped([new])
    if not _is(content, [*old, new]):  # as of a list in brackets, to which lines can't be added
        content = _dumped([*old, new])
    write_whole(path, content.encode())


def _dumped(entries: list[Json]) -> str:
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def _is(content: str, entries: list[Json]) -> bool:
    try:
        return bool(yaml.safe_load(content) == entries)
    except yaml.YAMLError:
        return False
