"""How the category ids of a panoptic JSON become the class numbers of the two heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from .fields import Json
from .validate import THINGS

# Detectron2's heads need at least one thing class. Where the data have none this one stands in; it
# never occurs, and the evaluator discards what is predicted of it.
NO_THINGS = "(no things)"
_THINGS_COLOR = [82, 18, 128]


def thing_class_ids(categories: list[Json]) -> dict[int, int]:
    """Category id -> class of the instance heads, 0, 1, ... in the order of the ids."""
    return {value: index for index, value in enumerate(_ids(categories, isthing=True))}


def stuff_class_ids(categories: list[Json]) -> dict[int, int]:
    """Category id -> class of the stuff head, 1, 2, ... in the order of the ids."""
    return {value: index for index, value in enumerate(_ids(categories, isthing=False), start=1)}


def class_metadata(categories: list[Json]) -> dict[str, Any]:
    """The classes as Detectron2's `MetadataCatalog` has them for "separated" panoptic data sets.

    Colours are given if every category has one.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    things = [category for category in ordered if category["isthing"]]
    stuff = [category for category in ordered if not category["isthing"]]
    used = {category["id"] for category in categories}
    # Class 0 needs a category id as well. Detectron2 takes 0, which may be a category here.
    things_id = 0 if 0 not in used else max(used) + 1
    metadata: dict[str, Any] = {
        "thing_classes": [category["name"] for category in things] or [NO_THINGS],
        "thing_dataset_id_to_contiguous_id": thing_class_ids(categories),
        "stuff_classes": [THINGS] + [category["name"] for category in stuff],
        "stuff_dataset_id_to_contiguous_id": {**stuff_class_ids(categories), things_id: 0},
    }
    if all("color" in category for category in categories):
        metadata["thing_colors"] = [category["color"] for category in things] or [_THINGS_COLOR]
        metadata["stuff_colors"] = [_THINGS_COLOR] + [category["color"] for category in stuff]
    return metadata


def plain_name(name: str) -> str:
    """The name without capitals, and without "-other" and "-merged", which COCO's files have and
    Detectron2's lists of classes lack."""
    return _without_endings(name).casefold()


def different_classes(
    one: Mapping[str, Any], other: Mapping[str, Any], *, capitals: bool = True
) -> tuple[str, str] | None:
    """The first class in which the metadata of two data sets differ.

    Compared are, number by number of either head, category id and name; the latter without the
    endings of `plain_name`.

    Args:
        capitals: whether they count.

    Returns:
        What it is in the one and in the other; None if all are alike.
    """
    simplify = _without_endings if capitals else plain_name
    for kind in ("thing", "stuff"):
        for pair in zip_longest(_classes(one, kind), _classes(other, kind)):
            first, second = (found and (found.category, simplify(found.name)) for found in pair)
            if first != second:
                described = [str(found or f"no further {kind} class") for found in pair]
                return described[0], described[1]
    return None


@dataclass(frozen=True)
class _Class:
    kind: str
    number: int
    name: str
    category: int | None

    def __str__(self) -> str:
        of = "" if self.category is None else f" (category {self.category})"
        return f"{self.kind} class {self.number} {self.name!r}{of}"


def _classes(metadata: Mapping[str, Any], kind: str) -> list[_Class]:
    """The classes of a head, in order."""
    ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    category_of = {number: category for category, number in ids.items()}
    names = metadata.get(f"{kind}_classes") or []
    if kind == "stuff" and names[:1] == [THINGS]:
        category_of.pop(0, None)  # it stands for all things and has no category
    return [
        _Class(kind, number, name, category_of.get(number)) for number, name in enumerate(names)
    ]


def _without_endings(name: str) -> str:
    return name.replace("-other", "").replace("-merged", "")


def _ids(categories: list[Json], *, isthing: bool) -> list[int]:
    return sorted(category["id"] for category in categories if bool(category["isthing"]) == isthing)
