"""How the category ids of a panoptic JSON become the class numbers of the two heads."""

from __future__ import annotations

from typing import Any

from .validate import Json

# Detectron2's heads need at least one thing class. Where the data have none this one stands in; it
# never occurs, and the evaluator discards what is predicted of it.
NO_THINGS = "(no things)"
# Class 0 of the stuff head, as in Detectron2's own `*_panoptic_separated` data sets.
THINGS = "things"
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


def _ids(categories: list[Json], *, isthing: bool) -> list[int]:
    return sorted(category["id"] for category in categories if bool(category["isthing"]) == isthing)
