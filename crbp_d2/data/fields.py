"""What each field of the JSON files may hold: all that training, evaluation and pictures read.

An entry is read into a normal form that has these fields and no others, so that nothing that was
not checked reaches the derived files.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from PIL import ImageColor

Json = dict[str, Any]

# Segment ids are stored in three bytes of a PNG, and 0 means unlabelled.
MAX_SEGMENT_ID = 256**3 - 1
# Of an image. What is done to one takes up to 20 bytes a pixel, in every worker.
MAX_PIXELS = 8192 * 8192
# Of a square image, likewise.
MAX_SIDE = 8192
# The evaluators put ids into numpy arrays.
_MAX_ID = 2**63 - 1
# Neither logs nor file systems take control characters and halves of surrogate pairs.
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """What a field may hold.

    Args:
        read: from a value to its normal form. Raises ValueError if it is not allowed.
        expected: what is, for the message.
        default: of a field that may be left out; with None it is then left out of the normal form.
    """

    read: Callable[[Any], Any]
    expected: str
    default: Any = _REQUIRED


def read_entry(
    entry: Any, fields: Mapping[str, Field], place: str, report: Callable[[str], None]
) -> Json:
    """The normal form of an entry.

    Args:
        place: of the entry in its file, for the messages.
        report: called with a message for each field that is wrong. The result is of no use then.
    """
    if not isinstance(entry, dict):
        report(f"{place} must be an object")
        return {}
    clean = {}
    for name, field in fields.items():
        if name not in entry and field.default is not _REQUIRED:
            clean[name] = field.default
        elif name not in entry:
            report(f"{place} lacks {name!r}: {field.expected}")
        else:
            try:
                clean[name] = field.read(entry[name])
            except ValueError:
                value = reprlib.repr(entry[name])
                report(f"{place}: {name!r} is {value}, must be {field.expected}")
    return {name: value for name, value in clean.items() if value is not None}


def text(value: Any) -> str:
    """A string that is not empty and can be printed."""
    if isinstance(value, str) and value and not _NOT_TEXT.search(value):
        return value
    raise ValueError


def whole(lowest: int, highest: int = _MAX_ID) -> Callable[[Any], int]:
    """Reads a whole number of a range."""

    def read(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        raise ValueError

    return read


def identifier(value: Any) -> int | str:
    """The id of an image: a whole number or a string."""
    return text(value) if isinstance(value, str) else whole(-_MAX_ID)(value)


def flag(value: Any) -> int:
    """0 or 1, also as a boolean."""
    if isinstance(value, (int, float)) and value in (0, 1):
        return int(value)
    raise ValueError


def finite(value: Any) -> float:
    """A number that is neither NaN nor infinite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_ID:
        return value
    raise ValueError


def relative_path(value: Any) -> str:
    """A path inside a folder; folders are separated by a slash on every system."""
    path = PurePosixPath(text(value))
    if "\\" in value or path.is_absolute() or ".." in path.parts or PureWindowsPath(value).drive:
        raise ValueError
    return str(path)


def colour(value: Any) -> list[int] | None:
    """Red, green and blue from 0 to 255, given so or by a name or hexadecimal code; None if none
    is given."""
    if value is None:
        return None
    if isinstance(value, str):
        value = ImageColor.getrgb(value)[:3]
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError
    return [whole(0, 255)(part) for part in value]


def objects(value: Any) -> list[Any]:
    """A list, whose entries are read by themselves."""
    if isinstance(value, list):
        return value
    raise ValueError


def box(value: Any) -> list[float]:
    """Left, top, width and height, none of the latter negative."""
    numbers = [finite(number) for number in objects(value)]
    if len(numbers) != 4 or min(numbers[2:]) < 0:
        raise ValueError
    return [float(number) for number in numbers]


def area(value: Any) -> float:
    """A number of pixels, not necessarily whole."""
    if finite(value) >= 0:
        return value
    raise ValueError


def mask(value: Any) -> Any:
    """Polygons or run lengths, which are checked against the size of the image."""
    if isinstance(value, (dict, list)):
        return value
    raise ValueError


def zero(value: Any) -> int:
    """0, also as a boolean."""
    if flag(value):
        raise ValueError
    return 0


_ID = "a whole number or a string"
_PATH = "a path inside the folder of {}, its folders separated by /"
_CATEGORY_ID = Field(whole(0), "a whole number, at least 0")
_IMAGE_ID = Field(identifier, _ID)
_NAME = Field(text, "a string without line breaks")
_PIXELS = Field(whole(1), "the number of pixels")
_CROWD = Field(flag, "1 for a crowd, else 0", default=0)

PANOPTIC: dict[str, dict[str, Field]] = {
    "images": {
        "id": _IMAGE_ID,
        "file_name": Field(relative_path, _PATH.format("images")),
        "width": _PIXELS,
        "height": _PIXELS,
    },
    "annotations": {
        "image_id": _IMAGE_ID,
        "file_name": Field(relative_path, _PATH.format("PNGs")),
        "segments_info": Field(objects, "a list"),
    },
    "categories": {
        "id": _CATEGORY_ID,
        "name": _NAME,
        "isthing": Field(flag, "1 for things, 0 for stuff"),
        "color": Field(
            colour, "red, green and blue from 0 to 255, or such as '#ff8000'", default=None
        ),
    },
    "segments_info": {
        "id": Field(whole(1, MAX_SEGMENT_ID), f"a whole number from 1 to {MAX_SEGMENT_ID}"),
        "category_id": Field(whole(0), "the id of a category"),
        "iscrowd": _CROWD,
    },
}
"""Of COCO's panoptic format. Areas and boxes are measured, whatever is given."""

INSTANCES: dict[str, dict[str, Field]] = {
    "images": {
        "id": _IMAGE_ID,
        "file_name": Field(text, "the name of the image's file", default=None),
        "width": replace(_PIXELS, default=None),
        "height": replace(_PIXELS, default=None),
    },
    "annotations": {
        "image_id": _IMAGE_ID,
        "category_id": Field(whole(0), "the id of a category"),
        "iscrowd": _CROWD,
        "ignore": Field(zero, "0 or left out: use 'iscrowd'", default=0),
        "bbox": Field(box, "left, top, width and height in pixels", default=None),
        "area": Field(area, "a number of pixels", default=None),
        "segmentation": Field(mask, "polygons or run lengths"),
    },
    "categories": {"id": _CATEGORY_ID, "name": _NAME},
}
"""Of COCO's instance format. Ids of the annotations are given anew, whatever they are."""
