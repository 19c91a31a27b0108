"""What the values of a label map mean: rules from a value to a class and an object."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..validate import DatasetError
from .scene import Category, Shape

# Cityscapes' instance ids: class times this, plus the number of the object.
_OBJECTS_PER_CLASS = 1000


@dataclass(frozen=True)
class Meaning:
    """Of a value.

    Args:
        category: name of the class.
        number: of the object; values with the same class and number are one.
        crowd: whether it may be several objects.
    """

    category: str
    number: int | str
    crowd: bool = False


class Rule(Protocol):
    """A meaning for every value; it can be pickled."""

    def meaning(self, value: int) -> Meaning | None:
        """None for an unlabelled pixel. Raises KeyError for a value that has no meaning."""

    def categories(self, values: Iterable[int]) -> list[Category]:
        """The classes, of data in which these values occur, some of them more than once."""


@dataclass(frozen=True)
class OneClass:
    """Every value is an object of one class, unless unlabelled (`void`)."""

    name: str
    void: frozenset[int]

    def meaning(self, value: int) -> Meaning | None:
        """See `Rule`."""
        return None if value in self.void else Meaning(self.name, value)

    def categories(self, values: Iterable[int]) -> list[Category]:
        """See `Rule`."""
        return [Category(self.name)]


@dataclass(frozen=True)
class Stuff:
    """Every value is a class of stuff, unless unlabelled (`void`)."""

    names: Mapping[int, str]
    void: frozenset[int]

    def meaning(self, value: int) -> Meaning | None:
        """See `Rule`."""
        return None if value in self.void else Meaning(self.names[value], value, crowd=True)

    def categories(self, values: Iterable[int]) -> list[Category]:
        """See `Rule`."""
        return [Category(name, isthing=False) for name in dict.fromkeys(self.names.values())]


@dataclass(frozen=True)
class Cityscapes:
    """Cityscapes' instance ids: from 1000 on, value // 1000 is the class of an object; below, the
    value is a class of stuff, or a crowd if the class has objects elsewhere.

    Args:
        names: of the classes; without any they are called by their numbers.
        void: classes whose pixels are unlabelled, their objects included.
    """

    names: Mapping[int, str]
    void: frozenset[int]

    def meaning(self, value: int) -> Meaning | None:
        """See `Rule`."""
        number = _class_number(value)
        if number in self.void:
            return None
        name = self.names[number] if self.names else f"class {number}"
        return Meaning(name, value, crowd=value < _OBJECTS_PER_CLASS)

    def categories(self, values: Iterable[int]) -> list[Category]:
        """See `Rule`."""
        values = {value for value in values if _class_number(value) not in self.void}
        things = {_class_number(value) for value in values if value >= _OBJECTS_PER_CLASS}
        names = self.names or {
            number: f"class {number}" for number in sorted(map(_class_number, values))
        }
        return [Category(name, number in things, number) for number, name in names.items()]


def _class_number(value: int) -> int:
    return value // _OBJECTS_PER_CLASS if value >= _OBJECTS_PER_CLASS else value


@dataclass(frozen=True)
class Table:
    """Meanings that a file lists, but for what is unlabelled (`void`)."""

    rows: Mapping[int, Meaning]
    void: frozenset[int]

    def meaning(self, value: int) -> Meaning | None:
        """See `Rule`."""
        return None if value in self.void else self.rows[value]

    def categories(self, values: Iterable[int]) -> list[Category]:
        """See `Rule`."""
        names = dict.fromkeys(meaning.category for meaning in self.rows.values())
        return [Category(name) for name in names]


def read_table(path: Path) -> dict[int, Meaning]:
    """Meanings by values, of a CSV file with the columns value, class and perhaps object, by which
    values are joined.

    Raises:
        DatasetError: naming the file, the line and the cure.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; check the path")
    rows: dict[int, Meaning] = {}
    try:
        # Spreadsheets put a byte order mark before it.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"value", "class"} <= set(reader.fieldnames or ()):
                raise DatasetError(
                    f"{path}: line 1 must be value,class or value,class,object; add it"
                )
            for row in reader:
                value, meaning = _table_row(row)
                if value in rows:
                    raise ValueError(f"the value {value} was there before; keep one of the lines")
                rows[value] = meaning
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error}); save it so") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _table_row(row: Mapping[str, str | None]) -> tuple[int, Meaning]:
    given = (row["value"] or "").strip()
    if not given.isdecimal():
        raise ValueError(f"the value is {given!r}, must be a whole number, at least 0")
    category = (row["class"] or "").strip()
    if not category:
        raise ValueError(f"the value {given} has no class; add it")
    number = (row.get("object") or "").strip()
    return int(given), Meaning(category, number or int(given))


def named_values(option: str, given: Sequence[str]) -> dict[int, str]:
    """Names of classes by values, from `VALUE=NAME ...`.

    Raises:
        DatasetError: it is something else, or has a value twice.
    """
    names: dict[int, str] = {}
    for pair in given:
        value, _, name = pair.partition("=")
        if not value.isdecimal() or not name:
            raise DatasetError(f"{option} {pair!r}: must be VALUE=NAME, as 7=road; correct it")
        if int(value) in names:
            raise DatasetError(f"{option} {pair!r}: {value} has a name already; keep one")
        names[int(value)] = name
    return names


def shapes_of(
    path: Path,
    labels: npt.NDArray[np.int64],
    rule: Rule,
    *,
    below: bool = False,
) -> list[Shape]:
    """The shapes of a label map.

    Args:
        path: of the map, for messages.
        labels: (height, width), its values.
        below: see `Shape`.

    Raises:
        DatasetError: a value has no meaning.
    """
    values, index = np.unique(labels, return_inverse=True)
    numbers: dict[tuple[str, int | str], int] = {}
    places: list[tuple[int, Meaning]] = []
    number_of = np.zeros(len(values), dtype=np.int32)
    for position, value in enumerate(values.tolist()):
        try:
            meaning = rule.meaning(value)
        except KeyError:
            raise DatasetError(
                f"{path}: the value {value} has no meaning; name its class, or give it to --void"
            ) from None
        if meaning is None:
            continue
        key = (meaning.category, meaning.number)
        if key not in numbers:
            numbers[key] = len(numbers) + 1
            places.append((value, meaning))
        number_of[position] = numbers[key]
    regions = number_of[index].reshape(labels.shape)
    boxes = ndimage.find_objects(regions, max_label=len(numbers))
    return [
        Shape(
            f"{path}, value {value}",
            meaning.category,
            regions[box] == number,
            left=box[1].start,
            top=box[0].start,
            crowd=meaning.crowd,
            below=below,
        )
        for number, ((value, meaning), box) in enumerate(zip(places, boxes, strict=True), start=1)
    ]
