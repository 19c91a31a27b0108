"""Label maps: images whose values are numbers of objects.

A map has the name of its image but for the ending, unless patterns tell otherwise, where {id} is
what the names share. What the values mean is said by one of these:

  --rule one-class NAME  every value is an object of one class
  --rule cityscapes      from 1000 on, value // 1000 is the class of an object; a value below is a
                         class of stuff, or a crowd if objects of that class occur; --values names
                         the classes
  --csv FILE             a table with the columns value,class or value,class,object; values of the
                         same class and object are one object

examples:
  datasets/convert.py labels cells/images cells/labels --rule one-class cell \\
      --out cells --name cells_train
  datasets/convert.py labels leftImg8bit/train gtFine/train --rule cityscapes \\
      --images '{id}_leftImg8bit.png' --labels '{id}_gtFine_instanceIds.png' \\
      --values 7=road 8=sidewalk 11=building 21=vegetation 23=sky 24=person 26=car \\
      --void 0 1 2 3 4 5 6 9 10 12 13 14 15 16 17 18 19 20 22 25 27 28 29 30 31 32 33 \\
      --out city --name city_train
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crbp_d2.progress import tqdm

from ..parallel import ordered_map
from ..validate import DatasetError
from .arguments import add_values, stated_values, void_values
from .files import read_labels
from .patterns import find_annotated
from .scene import Annotated, Entry, Named, Shape, Size
from .values import Cityscapes, OneClass, Rule, Table, read_table, shapes_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Format`."""
    parser.add_argument("image_folder", type=Path, metavar="IMAGES", help="folder of the images")
    parser.add_argument("label_folder", type=Path, metavar="LABELS", help="folder of the maps")
    parser.add_argument(
        "--images", default="{id}.*", metavar="PATTERN", help="in IMAGES (default: {id}.*)"
    )
    parser.add_argument(
        "--labels", default="{id}.*", metavar="PATTERN", help="in LABELS (default: {id}.*)"
    )
    rules = parser.add_mutually_exclusive_group(required=True)
    rules.add_argument("--rule", nargs="+", metavar=("RULE", "NAME"), help="see above")
    rules.add_argument("--csv", type=Path, metavar="FILE", help="see above")
    add_values(parser, "of classes, by --rule cityscapes")


def find(arguments: argparse.Namespace) -> Annotated:
    """See `Format`."""
    rule = _rule(arguments)
    images, belonging = find_annotated(
        arguments.image_folder, arguments.images, arguments.label_folder, arguments.labels
    )
    maps: dict[str, Path] = {}
    for file, image, _ in belonging:
        path = arguments.label_folder / file
        if image in maps:
            raise DatasetError(
                f"{path}: a second label map of {images[image]}, beside {maps[image].name}; remove "
                f"one, or mend the pattern {arguments.labels!r}"
            )
        maps[image] = path
    for name, file in images.items():
        if name not in maps:
            raise DatasetError(
                f"{arguments.image_folder / file}: no label map in {arguments.label_folder} is "
                f"called {arguments.labels.replace('{id}', name)!r}; add it, or remove the image"
            )
    values = _values(list(maps.values()), arguments.workers)
    entries = [
        Entry(number, images[name], maps[name])
        for number, name in enumerate(sorted(images), start=1)
    ]
    reading = functools.partial(_shapes, rule=rule)
    categories, named = rule.categories(values), _named(rule)
    return Annotated(arguments.image_folder, categories, entries, reading, named)


def _rule(arguments: argparse.Namespace) -> Rule:
    names = stated_values(arguments)
    match arguments.rule:
        case ["cityscapes"]:
            return Cityscapes(names, void_values(arguments, names))
        case _ if names:
            raise DatasetError("--values: belongs to --rule cityscapes; remove it")
        case None:
            rows = read_table(arguments.csv)
            return Table(rows, void_values(arguments, rows))
        case ["one-class", name]:
            return OneClass(name, void_values(arguments, ()))
    raise DatasetError(
        f"--rule {' '.join(arguments.rule)}: must be 'cityscapes' or 'one-class NAME'; correct it"
    )


def _named(rule: Rule) -> list[Named]:
    match rule:
        case OneClass(name=name):
            return [Named("--rule one-class", [name])]
        case Cityscapes(names=names):
            return [Named("--values", list(names.values()))]
    return []


def _values(paths: list[Path], workers: int | None) -> Iterator[int]:
    """All values that occur; no map is read before a rule asks for them."""
    found = ordered_map(_values_of, paths, workers=workers)
    # disable=None: no bar where the output isn't a terminal.
    for values in tqdm(found, "values", len(paths), unit="map", disable=None):
        yield from values


def _values_of(path: Path) -> set[int]:
    return set(np.unique(read_labels(path, None)).tolist())


def _shapes(path: Path, size: Size, rule: Rule) -> list[Shape]:
    return shapes_of(path, read_labels(path, size), rule)
