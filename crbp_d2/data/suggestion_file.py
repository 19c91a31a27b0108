"""Suggested keys as a config file on top of another one, a comment over each."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .files import absolute
from .storage import write_whole
from .suggest import Suggestion
from .validate import DatasetError

_WIDTH = 100


def as_yaml(suggestions: Iterable[Suggestion]) -> str:
    """The keys in their nodes, in the order in which these are first named."""
    tree: dict[str, Any] = {}
    for suggestion in suggestions:
        *nodes, name = suggestion.key.split(".")
        node = tree
        for part in nodes:
            node = node.setdefault(part, {})
        node[name] = suggestion
    return "".join(f"{line}\n" for line in _lines(tree))


def require_folder(path: str | Path) -> Path:
    """The full path of a file that shall be written, whose folder exists.

    Raises:
        DatasetError: there is no such folder, or the path is that of one.
    """
    target = absolute(path)
    if not os.path.isdir(target.parent):
        raise DatasetError(f"{target.parent}: no such folder; make it, or name another file")
    if os.path.isdir(target):
        raise DatasetError(f"{target}: a folder; name a file in it")
    return target


def write_suggestions(
    path: Path, suggestions: Iterable[Suggestion], *, base: str | Path, about: str
) -> None:
    """Write a config file, whole or not at all. One that is there stays, unless it is the same.

    Args:
        path: of `require_folder`.
        base: config that the model otherwise has, and that the keys were suggested for.
        about: what the first line says, without a full stop.

    Raises:
        DatasetError: another file is there.
        OSError: it can't be written.
    """
    other = os.path.abspath(base)
    # Detectron2 takes ".." by its name, which below a link is another folder.
    if os.path.realpath(path.parent) == str(path.parent):
        other = os.path.relpath(other, path.parent)
    head = [f"# {about}.", f"_BASE_: {json.dumps(other)}"]
    content = ("\n".join(head) + "\n" + as_yaml(suggestions)).encode()
    if os.path.exists(path) and path.read_bytes() != content:
        raise DatasetError(f"{path}: exists, and says something else; remove it, or name another")
    write_whole(path, content)


def _lines(node: dict[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, Suggestion):
            comment = f"{indent}# "
            yield from textwrap.wrap(
                f"{value.reason[0].upper()}{value.reason[1:]}.",
                _WIDTH,
                initial_indent=comment,
                subsequent_indent=comment,
            )
            yield f"{indent}{name}: {json.dumps(value.value)}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
