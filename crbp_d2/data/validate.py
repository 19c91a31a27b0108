"""What a panoptic JSON must be, checked before anything is made from it."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .fields import MAX_PIXELS, PANOPTIC, Field, Json, read_entry

# Stuff maps are 8-bit PNGs in which 0 is "things" and 255 is unlabelled.
MAX_STUFF_CATEGORIES = 254
# Key of a JSON's "info" by which converted data are known.
CONVERTED = "converted"
# Class 0 of the stuff head, as in Detectron2's own `*_panoptic_separated` data sets.
THINGS = "things"


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
        """Raises `DatasetError` with the first `SHOWN` problems and the number of all; in one line
        if there is one."""
        if not self._count:
            return
        if self._count == 1:
            raise DatasetError(f"{self._subject}: {self._messages[0]}")
        lines = [f"{self._subject}: {self._count} problems", *self._messages]
        if self._count > len(self._messages):
            lines.append(f"... and {self._count - len(self._messages)} more")
        raise DatasetError("\n  ".join(lines))


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `DatasetError` if it is missing or not JSON."""
    if not os.path.isfile(path):
        raise DatasetError(f"{path}: no such file; check the path")
    try:
        # Some editors and exporters on Windows put a byte order mark before it.
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not a JSON file ({error}); export or copy it again") from error


def read_lists(
    content: Any, kinds: Mapping[str, Mapping[str, Field]], form: str, problems: Problems
) -> dict[str, list[Json]]:
    """The lists "images", "annotations" and "categories" of a COCO JSON, in normal form.

    Args:
        kinds: the fields of each list's entries.
        form: what the file should be in, for the messages.

    Raises:
        DatasetError: a list is missing, or a field is.
    """
    if not isinstance(content, dict):
        problems.add(f"not in {form}: the top level must be an object")
        problems.raise_if_any()
    keys = ("images", "annotations", "categories")
    for key in keys:
        if not isinstance(content.get(key), list):
            problems.add(f"not in {form}: {key!r} must be a list of objects")
    problems.raise_if_any()
    clean = {
        key: [
            read_entry(entry, kinds[key], f"{key}[{index}]", problems.add)
            for index, entry in enumerate(content[key])
        ]
        for key in keys
    }
    problems.raise_if_any()
    return clean


def read_panoptic_json(path: Path) -> dict[str, list[Json]]:
    """Reads a JSON in COCO's panoptic format and checks all that can be seen without the images.

    Returns:
        Images, annotations and categories with the fields of `PANOPTIC`, in normal form.

    Raises:
        DatasetError: with what is missing, duplicate, empty or unknown.
    """
    problems = Problems(str(path))
    given = read_json(path)
    refuse_instances(path, given)
    content = read_lists(given, PANOPTIC, "COCO's panoptic format", problems)
    for key, entries in content.items():
        if not entries:
            problems.add(f"{key!r} is empty: nothing to train on")
    for index, annotation in enumerate(content["annotations"]):
        annotation["segments_info"] = [
            read_entry(
                segment,
                PANOPTIC["segments_info"],
                f"annotations[{index}].segments_info[{number}]",
                problems.add,
            )
            for number, segment in enumerate(annotation["segments_info"])
        ]
    # What follows relies on the fields.
    problems.raise_if_any()
    check_categories(content["categories"], problems)
    check_images(content["images"], problems)
    _check_annotations(content, problems)
    problems.raise_if_any()
    return content


def refuse_instances(path: Path, content: Any) -> None:
    """Raises `DatasetError` if the content of a file is in COCO's instance format, in the place of
    the panoptic one."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, dict) and "segmentation" in first and "segments_info" not in first:
        raise DatasetError(
            f"{path}: in COCO's instance format, not in the panoptic one; convert it by "
            f"datasets/convert.py instances {shlex.quote(str(path))} IMAGES --out FOLDER "
            "--name NAME (--help tells how to name the classes of stuff)"
        )


def converted_by(content: Any) -> Json | None:
    """The call of `datasets/convert.py` that wrote a JSON with this content; None of another."""
    info = content.get("info") if isinstance(content, dict) else None
    call = info.get(CONVERTED) if isinstance(info, dict) else None
    return call if isinstance(call, dict) else None


def duplicates(values: Iterable[Any]) -> list[Any]:
    """Those that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def check_categories(categories: list[Json], problems: Problems) -> None:
    """Reports categories that one model could not have together."""
    for value in duplicates(category["id"] for category in categories):
        problems.add(f"duplicate category id {value}: ids must be unique")
    # Results have one key for each name.
    for name in duplicates(category["name"] for category in categories):
        ids = [str(category["id"]) for category in categories if category["name"] == name]
        problems.add(f"categories {' and '.join(ids)} are both called {name!r}: rename one of them")
    for category in categories:
        if category["name"] == THINGS and not category["isthing"]:
            problems.add(
                f"stuff category {category['id']} is called {THINGS!r}, as the class of all things "
                "among the stuff is; rename it"
            )
    stuff = sum(not category["isthing"] for category in categories)
    if stuff > MAX_STUFF_CATEGORIES:
        problems.add(f"{stuff} stuff categories: at most {MAX_STUFF_CATEGORIES} fit in a stuff map")


def check_images(images: list[Json], problems: Problems) -> None:
    """Reports images that can't be told apart, by their ids or their names."""
    for key in ("id", "file_name"):
        for value in duplicates(image[key] for image in images):
            problems.add(f"duplicate image {key} {value!r}: keep one of them")
    for image in images:
        # Some formats leave the size to the image.
        if image.get("width", 0) * image.get("height", 0) > MAX_PIXELS:
            problems.add(
                f"image {image['file_name']}: {image['width']} x {image['height']} pixels are "
                f"more than {MAX_PIXELS}; cut it into tiles"
            )
    # The evaluators sort them.
    examples = {type(image["id"]): image["id"] for image in reversed(images)}
    if len(examples) > 1:
        listed = " and ".join(repr(examples[kind]) for kind in (int, str))
        problems.add(f"image ids are numbers and strings, as {listed}: make them all alike")


def _check_annotations(content: Json, problems: Problems) -> None:
    image_ids = {image["id"] for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    annotations = content["annotations"]
    for value in duplicates(annotation["image_id"] for annotation in annotations):
        problems.add(f"duplicate annotation of image id {value!r}: keep one of them")
    for name in duplicates(annotation["file_name"] for annotation in annotations):
        problems.add(f"duplicate annotation file_name {name!r}: each image needs its own PNG")
    annotated = set()
    for annotation in annotations:
        name = annotation["file_name"]
        annotated.add(annotation["image_id"])
        if annotation["image_id"] not in image_ids:
            problems.add(f"{name}: unknown image id {annotation['image_id']!r}; add it to 'images'")
        segments = annotation["segments_info"]
        for value in duplicates(segment["id"] for segment in segments):
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
