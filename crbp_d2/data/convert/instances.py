"""COCO's instance format: a JSON of polygons and run lengths, with maps of stuff or without.

A map of stuff has the name of its image but for the ending; --values says what its values mean.
Stuff of maps lies below everything else.

examples:
  datasets/convert.py instances street/instances_train.json street/train --stuff road sky \\
      --out street --name street_train
  datasets/convert.py instances instances.json images --semantic maps --values 1=road 2=sky \\
      --void 0 255 --out street --name street_train
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..fields import INSTANCES, PANOPTIC, Field, Json, identifier
from ..instances import read_mask
from ..validate import DatasetError, Problems, check_images, duplicates, read_json, read_lists
from .arguments import add_values, stated_values, void_values
from .files import read_labels
from .patterns import find_images
from .scene import Annotated, Category, Entry, Named, Shape, Size
from .values import Rule, Stuff, shapes_of

_ID = Field(identifier, "a whole number or a string", default=None)
_FIELDS = {
    "images": {**INSTANCES["images"], "file_name": PANOPTIC["images"]["file_name"]},
    "annotations": {**INSTANCES["annotations"], "id": _ID},
    "categories": {
        **PANOPTIC["categories"],
        "isthing": replace(PANOPTIC["categories"]["isthing"], default=1),
    },
}


@dataclass(frozen=True)
class _Annotation:
    """Of an image: its annotations, with their places in the file, and its map of stuff."""

    shapes: list[tuple[str, Json]]
    semantic: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Format`."""
    parser.add_argument("json", type=Path, metavar="JSON", help="in COCO's instance format")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the images")
    parser.add_argument(
        "--semantic", type=Path, metavar="FOLDER", help="of a label map of stuff for each image"
    )
    add_values(parser, "of the maps of stuff")


def find(arguments: argparse.Namespace) -> Annotated:
    """See `Format`."""
    path: Path = arguments.json
    content = _read(path)
    maps, rule = _maps(arguments, content["images"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    shapes: dict[int | str, list[tuple[str, Json]]] = {}
    for index, annotation in enumerate(content["annotations"]):
        place = f"{path}, {_named(index, annotation)}"
        shapes.setdefault(annotation["image_id"], []).append((place, annotation))
    entries = [
        Entry(
            image["id"],
            image["file_name"],
            _Annotation(shapes.get(image["id"], []), maps.get(image["file_name"])),
            (image["width"], image["height"]) if {"width", "height"} <= image.keys() else None,
            path,
        )
        for image in content["images"]
    ]
    reading = functools.partial(_shapes, names=names, rule=rule)
    named = Named("--values", list(rule.names.values()), stuff=True)
    return Annotated(arguments.images, _categories(content, rule), entries, reading, [named])


def _named(index: int, annotation: Json) -> str:
    return f"annotation {annotation['id']}" if "id" in annotation else f"annotations[{index}]"


def _read(path: Path) -> dict[str, list[Json]]:
    """The JSON, its lists checked but for the masks."""
    problems = Problems(str(path))
    content = read_lists(read_json(path), _FIELDS, "COCO's instance format", problems)
    check_images(content["images"], problems)
    for key in ("annotations", "categories"):
        for value in duplicates(entry["id"] for entry in content[key] if "id" in entry):
            problems.add(f"duplicate id {value!r} in {key!r}: ids must be unique")
    # What follows relies on them.
    problems.raise_if_any()
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for index, annotation in enumerate(content["annotations"]):
        place = _named(index, annotation)
        if annotation["image_id"] not in images:
            problems.add(
                f"{place}: unknown image id {annotation['image_id']!r}; add it to 'images', or "
                "remove the annotation"
            )
        if annotation["category_id"] not in categories:
            problems.add(
                f"{place}: unknown category id {annotation['category_id']}; add it to "
                "'categories', or correct it"
            )
    problems.raise_if_any()
    content["categories"] = _used_of_namesakes(path, content)
    return content


def _used_of_namesakes(path: Path, content: Mapping[str, list[Json]]) -> list[Json]:
    """The categories without those that nothing uses and that are called as another: tools for
    labelling add a root of that kind."""
    used = {annotation["category_id"] for annotation in content["annotations"]}
    kept = list(content["categories"])
    for name in duplicates(category["name"] for category in kept):
        alike = [category["id"] for category in kept if category["name"] == name]
        taken = [number for number in alike if number in used] or alike[:1]
        if len(taken) > 1:
            numbers = " and ".join(map(str, taken))
            raise DatasetError(
                f"{path}: categories {numbers} are both called {name!r} and in use; rename one"
            )
        kept = [one for one in kept if one["name"] != name or one["id"] in taken]
    return kept


def _maps(arguments: argparse.Namespace, images: list[Json]) -> tuple[dict[str, Path], Stuff]:
    """The map of stuff of each image, by its file name, and what their values mean."""
    folder: Path | None = arguments.semantic
    names = stated_values(arguments)
    if folder is None:
        if names:
            raise DatasetError("--values: needs --semantic, the folder of the maps; add it")
        return {}, Stuff({}, frozenset())
    if not names:
        raise DatasetError(f"--semantic {folder}: needs --values, what its values mean; add them")
    found = find_images(folder, "{id}.*")
    maps = {}
    for image in images:
        name = str(PurePosixPath(image["file_name"]).with_suffix(""))
        if name not in found:
            raise DatasetError(f"{folder / name}.png: no such map of stuff; add it")
        maps[image["file_name"]] = folder / found[name]
    return maps, Stuff(names, void_values(arguments, names))


def _categories(content: Mapping[str, list[Json]], rule: Stuff) -> list[Category]:
    by_name = {
        category["name"]: Category(
            category["name"], bool(category["isthing"]), category["id"], category.get("color")
        )
        for category in content["categories"]
    }
    for category in rule.categories(()):
        of_json = by_name.get(category.name, category)
        by_name[category.name] = replace(of_json, isthing=False)
    return list(by_name.values())


def _shapes(
    annotation: _Annotation,
    size: Size,
    names: Mapping[int, str],
    rule: Rule,
) -> list[Shape]:
    width, height = size
    shapes = []
    for place, one in annotation.shapes:
        try:
            run_lengths, _ = read_mask(one["segmentation"], height, width)
        except ValueError as error:
            raise DatasetError(f"{place}: {error}; correct it, or remove the annotation") from error
        name = names[one["category_id"]]
        shapes.append(Shape.encoded(place, name, run_lengths, crowd=bool(one["iscrowd"])))
    if annotation.semantic is not None:
        labels = read_labels(annotation.semantic, size)
        shapes += shapes_of(annotation.semantic, labels, rule, below=True)
    return shapes
