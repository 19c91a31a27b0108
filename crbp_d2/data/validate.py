"""What a panoptic JSON must be, checked before anything is made from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

Json = dict[str, Any]

# Segment ids are stored in three bytes of a PNG, and 0 means unlabelled.
_MAX_SEGMENT_ID = 256**3 - 1
# Stuff maps are 8-bit PNGs in which 0 is "things" and 255 is unlabelled.
MAX_STUFF_CATEGORIES = 254


class DatasetError(ValueError):
    """Data that can't be used. The message names each file and the cure."""


class Problems:
    """Collects what is wrong with one data set, to report it at once.

    Args:
        subject: what is examined, for the first line of the message.
    """

    SHOWN = 10

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._messages: list[str] = []
        self._count = 0

    def add(self, *messages: str) -> None:
        self._count += len(messages)
        self._messages += messages[: max(0, self.SHOWN - len(self._messages))]

    def raise_if_any(self) -> None:
        """Raises `DatasetError` with the first `SHOWN` problems and the number of all."""
        if not self._count:
            return
        noun = "problem" if self._count == 1 else "problems"
        lines = [f"{self._subject}: {self._count} {noun}", *self._messages]
        if self._count > len(self._messages):
            lines.append(f"... and {self._count - len(self._messages)} more")
        raise DatasetError("\n  ".join(lines))


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `DatasetError` if it is missing or not JSON."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; check the path")
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise DatasetError(f"{path}: not a JSON file ({error}); export or copy it again") from error


def read_panoptic_json(path: Path) -> Json:
    """Reads a JSON in COCO's panoptic format and checks all that can be seen without the images.

    Raises:
        DatasetError: with what is missing, duplicate, empty or unknown.
    """
    content = read_json(path)
    problems = Problems(str(path))
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        problems.add("not in COCO's panoptic format: the top level must be an object")
        problems.raise_if_any()
    for key in lists:
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            problems.add(f"not in COCO's panoptic format: {key!r} must be a list of objects")
        elif not entries:
            problems.add(f"{key!r} is empty: nothing to train on")
    problems.raise_if_any()
    _check_fields(content, problems)
    # What follows relies on the fields.
    problems.raise_if_any()
    _check_categories(content["categories"], problems)
    _check_images(content["images"], problems)
    _check_annotations(content, problems)
    problems.raise_if_any()
    return content


def check_instances_json(path: Path, panoptic: Json) -> None:
    """Checks that a COCO instance JSON has the images and thing categories of a panoptic JSON.

    Raises:
        DatasetError: otherwise.
    """
    content = read_json(path)
    problems = Problems(str(path))
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            problems.add(f"not in COCO's instance format: {key!r} must be a list")
    problems.raise_if_any()
    cure = "correct it, or give no instance JSON to have instances derived from the PNGs"
    things = {category["id"] for category in panoptic["categories"] if category["isthing"]}
    expected = {
        "categories": things,
        "images": {image["id"] for image in panoptic["images"]},
    }
    for key, ids in expected.items():
        found = {entry.get("id") for entry in content[key]}
        for where, difference in (
            ("missing", ids - found),
            ("not in the panoptic JSON", found - ids),
        ):
            if difference:
                examples = ", ".join(map(repr, list(difference)[:3]))
                problems.add(f"{len(difference)} {key} {where} (ids {examples}, ...); {cure}")
    problems.raise_if_any()


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_category_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_segment_id(value: Any) -> bool:
    return _is_count(value) and value <= _MAX_SEGMENT_ID


def _is_relative_path(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "images": {
        "id": (_is_id, "a number or a string"),
        "file_name": (_is_relative_path, "a path inside the folder of images"),
        "width": (_is_count, "the number of pixels"),
        "height": (_is_count, "the number of pixels"),
    },
    "annotations": {
        "image_id": (_is_id, "a number or a string"),
        "file_name": (_is_relative_path, "a path inside the folder of PNGs"),
        "segments_info": (lambda value: isinstance(value, list), "a list"),
    },
    "categories": {
        "id": (_is_category_id, "a number, at least 0"),
        "name": (lambda value: isinstance(value, str) and bool(value), "a string"),
        "isthing": (lambda value: value in (0, 1), "1 for things, 0 for stuff"),
    },
    "segments_info": {
        "id": (_is_segment_id, f"a number from 1 to {_MAX_SEGMENT_ID}"),
        "category_id": (_is_category_id, "the id of a category"),
    },
}


def _check_fields(content: Json, problems: Problems) -> None:
    for key in ("categories", "images", "annotations"):
        for index, entry in enumerate(content[key]):
            _check_entry(entry, key, f"{key}[{index}]", problems)
            segments = entry.get("segments_info") if key == "annotations" else None
            for number, segment in enumerate(segments if isinstance(segments, list) else ()):
                place = f"annotations[{index}].segments_info[{number}]"
                _check_entry(segment, "segments_info", place, problems)


def _check_entry(entry: Any, kind: str, place: str, problems: Problems) -> None:
    if not isinstance(entry, dict):
        problems.add(f"{place} must be an object")
        return
    for field, (is_valid, expected) in _FIELDS[kind].items():
        if field not in entry:
            problems.add(f"{place} lacks {field!r}: {expected}")
        elif not is_valid(entry[field]):
            problems.add(f"{place}: {field!r} is {entry[field]!r}, must be {expected}")


def _duplicates(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_categories(categories: list[Json], problems: Problems) -> None:
    for value in _duplicates(category["id"] for category in categories):
        problems.add(f"duplicate category id {value}: ids must be unique")
    stuff = sum(not category["isthing"] for category in categories)
    if stuff > MAX_STUFF_CATEGORIES:
        problems.add(f"{stuff} stuff categories: at most {MAX_STUFF_CATEGORIES} fit in a stuff map")


def _check_images(images: list[Json], problems: Problems) -> None:
    for key in ("id", "file_name"):
        for value in _duplicates(image[key] for image in images):
            problems.add(f"duplicate image {key} {value!r}: keep one of them")


def _check_annotations(content: Json, problems: Problems) -> None:
    image_ids = {image["id"] for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    annotations = content["annotations"]
    for value in _duplicates(annotation["image_id"] for annotation in annotations):
        problems.add(f"duplicate annotation of image id {value!r}: keep one of them")
    # Stuff maps are named after the PNGs, with the ending .png.
    names = (str(PurePosixPath(entry["file_name"]).with_suffix("")) for entry in annotations)
    for name in _duplicates(names):
        problems.add(f"duplicate annotation file_name {name!r}: each image needs its own PNG")
    annotated = set()
    for annotation in annotations:
        name = annotation["file_name"]
        annotated.add(annotation["image_id"])
        if annotation["image_id"] not in image_ids:
            problems.add(f"{name}: unknown image id {annotation['image_id']!r}; add it to 'images'")
        segments = annotation["segments_info"]
        for value in _duplicates(segment["id"] for segment in segments):
            problems.add(f"{name}: duplicate segment id {value}; ids are unique in an image")
        for segment in segments:
            if segment["category_id"] not in category_ids:
                problems.add(
                    f"{name}: segment {segment['id']} has the unknown category id "
                    f"{segment['category_id']}; add it to 'categories' or correct it"
                )
    for image in content["images"]:
        if image["id"] not in annotated:
            problems.add(f"image {image['file_name']} has no annotation; add one or remove it")
