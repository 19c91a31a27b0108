"""Registering the data sets that a file lists: the way to train on own data without Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from crbp_d2.plain import PlainError, read_plain

from .fields import Json
from .files import absolute
from .panoptic import register_panoptic
from .reading import checked_range
from .validate import DatasetError

_REQUIRED = ("name", "images", "panoptic_json", "panoptic_pngs")
_OPTIONAL = ("instances_json", "cache", "intensity_range")


def register_from_file(path: str | Path) -> list[str]:
    """Calls `register_panoptic` for each entry of a YAML (or JSON) file.

    The file is a list of entries whose keys are the arguments of `register_panoptic`. Relative
    paths start from the folder of the file::

        - name: street_train
          images: train
          panoptic_json: panoptic_train.json
          panoptic_pngs: panoptic_train

    Returns:
        The names, in order.

    Raises:
        DatasetError: the file is missing or not of this form, or data can't be registered.
    """
    path = absolute(path)
    entries = read_entries(path)
    for entry in entries:
        keys = entry.keys() - {"name", "intensity_range"}
        paths = {key: _from(path.parent, entry[key]) for key in keys}
        values = entry.get("intensity_range")
        register_panoptic(entry["name"], **paths, intensity_range=values)
    return [entry["name"] for entry in entries]


def read_entries(path: Path) -> list[Json]:
    """The entries of a file for `register_from_file`, without a look at the data.

    Raises:
        DatasetError: the file is missing or not of that form.
    """
    if not os.path.isfile(path):
        raise DatasetError(
            f"{path}: no such file; check the path, which as DATASETS.FILE begins at the working "
            "directory, or in a config beside that"
        )
    try:
        entries = read_plain(path)
    except PlainError as error:
        raise DatasetError(f"{path}: not a YAML file ({error}); correct it") from error
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{path}: must be a list of data sets, each with {', '.join(_REQUIRED)}")
    for number, entry in enumerate(entries, start=1):
        _check_entry(f"{path}, data set {number}", entry)
    return entries


def _from(folder: Path, path: str) -> Path:
    return absolute(path) if path.startswith("~") else folder / path


def _check_entry(place: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise DatasetError(f"{place}: must have the keys {', '.join(_REQUIRED)}")
    for key in _REQUIRED:
        if key not in entry:
            raise DatasetError(f"{place}: lacks the key {key!r}; add it")
    for key, value in entry.items():
        if key not in _REQUIRED + _OPTIONAL:
            allowed = ", ".join(_REQUIRED + _OPTIONAL)
            raise DatasetError(f"{place}: unknown key {key!r}; allowed are {allowed}")
        if key == "intensity_range":
            try:
                checked_range(value)
            except DatasetError as error:
                raise DatasetError(f"{place}: {error}") from error
        elif not isinstance(value, str) or not value:
            raise DatasetError(f"{place}: {key!r} is {value!r}, must be a string")
