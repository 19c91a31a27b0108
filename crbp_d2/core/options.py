"""Numbers, switches and names among the options: what they may be, for all in one place.

A number may come from anywhere: a NumPy scalar or a tensor of one element will do as well as a
Python number, and what is kept is the Python number. A switch is no number, nor is text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

from crbp_d2.core.errors import ConfigurationError, choices


def integer(name: str, value: Any, least: int, *, label: str = "", alternative: str = "") -> int:
    """A whole number.

    Args:
        name: of the option.
        value: given for it.
        least: it may be.
        label: what the message calls it, if not its name.
        alternative: what else it may be, for the message.

    Raises:
        ConfigurationError: it is none, or below the least.
    """
    try:
        number = None if _is_switch(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigurationError(
            f"{label or name} must be an integer of at least {least}{alternative}, got {value!r}",
            option=name,
        )
    return number


def integer_or_none(name: str, value: Any, least: int, *, label: str = "") -> int | None:
    """The same, or `None`."""
    if value is None:
        return None
    return integer(name, value, least, label=label, alternative=", or None")


def odd(name: str, value: Any) -> int:
    """A positive odd number: a kernel of that size keeps the shape of a state.

    Raises:
        ConfigurationError: it is none.
    """
    found = integer(name, value, 0)
    if found % 2 == 0:
        raise ConfigurationError(f"{name} must be a positive odd number, got {value}", option=name)
    return found


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    label: str = "",
    alternative: str = "",
) -> float:
    """A finite number in a range.

    Args:
        name: of the option.
        value: given for it.
        least: it may be.
        above: it must be more than this.
        most: it may be; with a lower bound.
        below: it must be less than this; with a lower bound.
        label: what the message calls it, if not its name.
        alternative: what else it may be, for the message.

    Raises:
        ConfigurationError: it is none, not finite or out of range.
    """
    found = _finite(value)
    if found is None:
        raise ConfigurationError(
            f"{label or name} must be a finite number{alternative}, got {value!r}", option=name
        )
    if (
        (least is not None and found < least)
        or (above is not None and found <= above)
        or (most is not None and found > most)
        or (below is not None and found >= below)
    ):
        low = f"[{least}" if above is None else f"({above}"
        if most is not None or below is not None:
            allowed = f"lie in {low}, {most}]" if below is None else f"lie in {low}, {below})"
        else:
            allowed = f"be at least {least}" if above is None else f"be above {above}"
        raise ConfigurationError(
            f"{label or name} must {allowed}{alternative}, got {value}", option=name
        )
    return found


def number_or_none(name: str, value: Any, **limits: Any) -> float | None:
    """The same, or `None`."""
    return None if value is None else number(name, value, **limits, alternative=", or None")


def switch(name: str, value: Any, *, label: str = "") -> bool:
    """True or False: a text like "false" would count as true.

    Raises:
        ConfigurationError: it is something else.
    """
    if not _is_switch(value) or getattr(value, "shape", None):
        raise ConfigurationError(
            f"{label or name} must be True or False, got {value!r}", option=name
        )
    return bool(value)


def one_of(name: str, value: str, allowed: Collection[str], *, label: str = "") -> str:
    """One of some names.

    Raises:
        ConfigurationError: it is none of them.
    """
    if value not in allowed:
        raise ConfigurationError(
            f"{label or name} is {value!r}; choose from {choices(allowed)}", option=name
        )
    return value


def settle(options: object, **values: Any) -> None:
    """Put checked values into the fields of a frozen dataclass that is being made."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def _is_switch(value: Any) -> bool:
    # NumPy and torch have truth values of their own, which may be taken for whole numbers.
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _finite(value: Any) -> float | None:
    if _is_switch(value) or isinstance(value, str | bytes | bytearray):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return found if math.isfinite(found) else None
