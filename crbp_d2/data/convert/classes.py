"""Which classes there are, what numbers they have, and which of them are things."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..fields import Json, text
from ..validate import DatasetError, Problems, check_categories
from .listing import Other
from .scene import Category, Named

logger = logging.getLogger(__name__)

_ALIKE = "one model needs the same classes: choose alike, or write to another --out"


@dataclass(frozen=True)
class Choices:
    """What a user decides about the classes, all of them by their names.

    Args:
        stuff, things: classes of that kind, whatever the format takes them for.
        classes: all there shall be, numbered in this order unless the format has numbers; ()
            takes those of the format.
        leave_out: classes whose shapes are not painted.
        order: classes above all others, from the lowest to the topmost.
        fill: stuff class of the pixels that have none; None leaves them unlabelled.
        as_stored: whether annotations fit the images as stored, and are turned upright with them.
    """

    stuff: Sequence[str] = ()
    things: Sequence[str] = ()
    classes: Sequence[str] = ()
    leave_out: Sequence[str] = ()
    order: Sequence[str] = ()
    fill: str | None = None
    as_stored: bool = False


def settle(
    found: Sequence[Category],
    choices: Choices,
    other: Other | None = None,
    named: Sequence[Named] = (),
) -> list[Json]:
    """The categories of the panoptic JSON.

    Args:
        found: those of the format.
        other: split of the data, whose categories are taken as they are.
        named: what options of the format say of the classes.

    Raises:
        DatasetError: choices contradict each other or the other split, or name a class that there
            is not; or Detectron2 could not do with the classes.
    """
    _check_choices(choices)
    for name in sorted(set(choices.leave_out) - {category.name for category in found}):
        logger.warning("no class is named %r, so --leave-out %s is without effect", name, name)
    present = [category for category in found if category.name not in choices.leave_out]
    if other is not None:
        _check_other(other, choices, named)
        categories = [dict(category) for category in other.categories]
    else:
        categories = _numbered(_chosen(present, choices))
    names = [category["name"] for category in categories]
    for option in ("stuff", "things", "order"):
        _require_known(f"--{option}", getattr(choices, option), names)
    problems = Problems("the classes")
    check_categories(categories, problems)
    problems.raise_if_any()
    return categories


def _chosen(present: Sequence[Category], choices: Choices) -> list[Category]:
    """Classes in the order of their numbers, each of the kind that it shall be."""
    by_name = {category.name: category for category in present}
    names = list(choices.classes or by_name)
    if choices.fill is not None and choices.fill not in names:
        names.append(choices.fill)
    chosen = []
    for name in names:
        one = by_name.get(name, Category(_readable(name), isthing=name != choices.fill))
        isthing = name in choices.things or (one.isthing and name not in choices.stuff)
        if isthing and name == choices.fill:
            raise DatasetError(
                f"--fill {name}: a class of things, of which each is one object; choose a class of "
                f"stuff, or make it one by --stuff {name}"
            )
        chosen.append(Category(name, isthing, one.id, one.color))
    if not chosen:
        raise DatasetError("there is no class; give --classes, or leave fewer out")
    return chosen


def _numbered(categories: Sequence[Category]) -> list[Json]:
    """As the JSON has them. Numbers are those of the format, others follow."""
    last = max((category.id for category in categories if category.id is not None), default=0)
    numbered = []
    for category in categories:
        if category.id is None:
            last += 1
        number = last if category.id is None else category.id
        entry: Json = {"id": number, "name": category.name, "isthing": int(category.isthing)}
        numbered.append(entry if category.color is None else {**entry, "color": category.color})
    return numbered


def _check_choices(choices: Choices) -> None:
    for name in choices.stuff:
        if name in choices.things:
            raise DatasetError(f"{name!r} is in --stuff and in --things; take it out of one")
    for option in ("classes", "order"):
        names = getattr(choices, option)
        for name in names:
            if names.count(name) > 1:
                raise DatasetError(f"--{option} names {name!r} twice; take one out")
    wanted = {*choices.stuff, *choices.things, *choices.classes, *choices.order, choices.fill}
    for name in choices.leave_out:
        if name in wanted:
            raise DatasetError(f"--leave-out {name}: named by another option as well; remove one")


def _check_other(other: Other, choices: Choices, named: Sequence[Named]) -> None:
    """Other choices than those of the split that is there already can't be followed."""
    path, names = other.path, [category["name"] for category in other.categories]
    if choices.classes and list(choices.classes) != [
        name for name in names if name in choices.classes or name != choices.fill
    ]:
        raise DatasetError(f"--classes: {path} has {_listed(names)}; {_ALIKE}")
    for one in (_filled(choices), *named):
        for name in one.names:
            if name not in (*names, *choices.leave_out):
                raise DatasetError(f"{one.option} {name}: {path} has {_listed(names)}; {_ALIKE}")
    for name in choices.leave_out:
        if name in names:
            raise DatasetError(f"--leave-out {name}: is a class of {path}; {_ALIKE}")
    _check_kinds(other, choices, named)
    _tell_of_fill(other, choices)


def _check_kinds(other: Other, choices: Choices, named: Sequence[Named]) -> None:
    things = Named("--things", choices.things)
    stuff = [Named("--stuff", choices.stuff), _filled(choices)]
    for one in named:
        if one.stuff:
            # --things is above what a format says.
            names = [name for name in one.names if name not in choices.things]
            stuff.append(Named(one.option, names))
    for category in other.categories:
        name, isthing = category["name"], category["isthing"]
        for one in stuff if isthing else [things]:
            if name in one.names:
                kind = "things" if isthing else "stuff"
                raise DatasetError(f"{one.option}: {name!r} is {kind} in {other.path}; {_ALIKE}")


def _filled(choices: Choices) -> Named:
    return Named("--fill", () if choices.fill is None else (choices.fill,))


def _tell_of_fill(other: Other, choices: Choices) -> None:
    """Say that pixels without a class become something else in the two splits, which is right where
    one of them has none."""
    before = (other.call or {"fill": choices.fill}).get("fill")
    if before != choices.fill:
        logger.warning(
            "pixels without a class: %s here, but %s in %s, so one split is learned or scored "
            "otherwise than the other; give both the same --fill, unless one has no such pixels",
            *(f"--fill {fill}" if fill else "no --fill" for fill in (choices.fill, before)),
            other.path,
        )


def _require_known(option: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise DatasetError(f"{option} {name}: no such class; there is {_listed(known)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _readable(name: str) -> str:
    try:
        return text(name)
    except ValueError:
        raise DatasetError(
            f"the class {name!r}: a name is a string without line breaks; change it"
        ) from None
