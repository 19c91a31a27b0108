"""The record of a finished folder, by which a later call sees whether all of it is still there."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from detectron2.utils.logger import log_first_n

from .fields import Json
from .files import naming
from .validate import DatasetError, read_json

_CHECKSUM = "checksum"


def sizes_below(folder: Path) -> dict[str, int]:
    """The size in bytes of each file below a folder, by its path from there."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def all_whole(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether all files have their sizes; warns of the first that has not, or is missing.

    Args:
        sizes: result of `sizes_below` from when the folder was finished.
    """
    for name, size in sizes.items():
        path = folder / name
        try:
            whole = path.stat().st_size == size
        except OSError:
            whole = False
        if not whole:
            # Once: those who make it anew look again when it is their turn.
            message = f"{path}: missing or cut, so its folder is made anew"
            log_first_n(logging.WARNING, message, name=__name__, key="message")
            return False
    return True


def write_record(path: Path, content: Json) -> None:
    """Writes a record, the last file of its folder."""
    whole = json.dumps({**content, _CHECKSUM: _checksum(content)})
    with naming(path):
        path.write_text(whole, encoding="utf-8")


def read_record(path: Path) -> Json | None:
    """What was written to a record, or None if that is missing or anything in it has changed."""
    try:
        content: Any = read_json(path)
    except (DatasetError, OSError):
        return None
    if not isinstance(content, dict) or content.pop(_CHECKSUM, None) != _checksum(content):
        return None
    return content


def _checksum(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
