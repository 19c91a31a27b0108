"""YAML files of plain values; what is wrong with one is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class PlainError(ValueError):
    """What a file holds is no YAML of plain values; the message says where and why."""


def read_plain(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The content of a YAML (or JSON) file; nothing that it holds is run.

    Args:
        path: of the file, in UTF-8.
        loader: of plain values.

    Raises:
        PlainError: it can't be read as such.
        OSError: it can't be read at all.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), loader)
    except OSError:
        raise
    # What is raised depends on the value that is broken: a date, a number, a tag.
    except Exception as error:
        raise PlainError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """An error of the YAML reader in one line, with the place if it has one."""
    if isinstance(error, yaml.MarkedYAMLError):
        said = " ".join(filter(None, (error.context, error.problem)))
        return f"{said}{position_of(error)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def position_of(error: yaml.MarkedYAMLError) -> str:
    """` in FILE, line N`, without the file where the text was read before; empty if not known."""
    mark = error.problem_mark
    if mark is None:
        return ""
    file = "" if mark.name.startswith("<") else f"{mark.name}, "
    return f" in {file}line {mark.line + 1}"
