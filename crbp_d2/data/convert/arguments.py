"""Arguments of the command line that formats have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from ..fields import Json
from ..parallel import add_workers_option
from .classes import Choices
from .values import named_values

# Neither of them changes what is written, or they say where.
_NOT_PART_OF_A_CALL = {"out", "name", "workers"}


def add_values(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares --values and --void.

    Args:
        what: the values are.
    """
    parser.add_argument(
        "--values", nargs="+", default=[], metavar="VALUE=NAME", help=f"names {what}"
    )
    parser.add_argument(
        "--void",
        nargs="*",
        type=int,
        metavar="VALUE",
        help="values of unlabelled pixels (default: 0, unless it has a meaning)",
    )


def stated_values(arguments: argparse.Namespace) -> dict[int, str]:
    """What --values says. Raises `DatasetError` if it can't be understood."""
    return named_values("--values", arguments.values)


def void_values(arguments: argparse.Namespace, stated: Collection[int]) -> frozenset[int]:
    """Values of unlabelled pixels.

    Args:
        stated: values that have a meaning.
    """
    if arguments.void is None:
        return frozenset({0} - set(stated))
    return frozenset(arguments.void)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Declares what every format takes: where to write, and `Choices`."""
    group = parser.add_argument_group("of all formats")
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="to write to")
    group.add_argument("--name", required=True, help="of the data set, another for each split")
    for option, help_text in (
        ("stuff", "classes of stuff, which is one segment an image"),
        ("things", "classes of things, of which each is an object (default: as the format has it)"),
        ("classes", "all classes there shall be, in the order of their numbers"),
        ("leave-out", "classes that are not painted"),
        ("order", "classes above all others, from the lowest to the topmost (default: larger "
         "shapes lie below smaller ones, whatever their class)"),
    ):  # fmt: skip
        group.add_argument(f"--{option}", nargs="+", default=[], metavar="CLASS", help=help_text)
    group.add_argument(
        "--fill", metavar="CLASS", help="stuff of the pixels that have no class (default: none)"
    )
    group.add_argument(
        "--as-stored",
        action="store_true",
        help="the annotations fit the images as they are stored, although EXIF says to turn them",
    )
    add_workers_option(parser)


def choices_of(arguments: argparse.Namespace) -> Choices:
    """What the user chose of `add_choices`."""
    names = Choices.__dataclass_fields__
    return Choices(**{name: getattr(arguments, name) for name in names})


def call_of(format_name: str, arguments: argparse.Namespace) -> Json:
    """What output is recognised by: the arguments as JSON has them, paths from --out."""
    out = arguments.out.resolve()
    call: Json = {"format": format_name}
    for name in sorted(vars(arguments).keys() - _NOT_PART_OF_A_CALL):
        value = getattr(arguments, name)
        if isinstance(value, Path):
            value = Path(os.path.relpath(value.resolve(), out)).as_posix()
        call[name] = value
    return call
