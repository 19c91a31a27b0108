"""Forms of what a file has kept: its values held against the types of a dataclass."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

AtSteps = Annotated[list[float], 4]
"""At T/2, T, 2T and 4T steps."""
Spread = Annotated[list[float], 3]
"""Median, 99th percentile and largest."""

_MOST = 2**63 - 1
"""Whole numbers above are no count, and some of them no float."""


def require_form(content: Any, kind: type, names: Mapping[str, Collection[str]]) -> None:
    """Refuse what `kind` was not written from.

    Args:
        content: of a JSON file.
        kind: dataclass, whose lists are `Annotated` with their length where it is known.
        names: field that is a mapping -> keys that it must have.

    Raises:
        ValueError: naming the field.
    """
    hints = get_type_hints(kind, include_extras=True)
    if not isinstance(content, dict) or content.keys() != hints.keys():
        raise ValueError(f"must have the keys {', '.join(hints)}, and no others")
    for name, hint in hints.items():
        if not _fits(content[name], hint):
            raise ValueError(f"{name} is {reprlib.repr(content[name])}")
        for key in names.get(name, ()):
            if key not in content[name]:
                raise ValueError(f"{name} lacks {key}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(value, inner[0]) and len(value) == inner[1]
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if hint is float and type(value) is float:
        return True
    if hint in (int, float):
        # Not of `bool`, which JSON tells from them.
        return type(value) is int and abs(value) <= _MOST
    return hint in (str, NoneType) and isinstance(value, hint)
