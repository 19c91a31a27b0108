"""The formats by name, and the way from a command line to a data set."""

from __future__ import annotations

import argparse
from typing import Protocol

from . import instances, labelme, labels, masks
from .arguments import call_of, choices_of
from .scene import Annotated
from .summary import Summary
from .write import convert


class Format(Protocol):
    """A format. A module is one: its docstring explains it, with examples."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares what it takes beside what all formats do."""

    def find(self, arguments: argparse.Namespace) -> Annotated:
        """The annotated images of a command line. Raises `DatasetError` if that is wrong."""


FORMATS: dict[str, Format] = {
    "instances": instances,
    "masks": masks,
    "labels": labels,
    "labelme": labelme,
}
"""By name. To add one, enter its module here."""


def convert_format(name: str, arguments: argparse.Namespace) -> Summary:
    """Converts what a command line says.

    Args:
        name: of the format.
        arguments: those that it and `add_choices` declare, and no others.

    Raises:
        DatasetError: see `convert`.
    """
    annotated = FORMATS[name].find(arguments)
    return convert(
        annotated,
        out=arguments.out,
        name=arguments.name,
        call=call_of(name, arguments),
        choices=choices_of(arguments),
        workers=arguments.workers,
    )
