"""What can go wrong, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigurationError(ValueError):
    """An option that is unknown or can't work; the message says which and what is allowed.

    Attributes:
        option: name of the argument to change, where there is a single one, else empty.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class CellError(TypeError):
    """A cell broke the contract `F(drive, state) -> next state` of unchanged shapes and types."""


class NonFiniteError(FloatingPointError):
    """NaN or infinity in a state or a gradient; names the step and the last residual."""


def choices(names: Iterable[str]) -> str:
    """Names as a readable list for messages."""
    return ", ".join(sorted(names))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean A or B?`, of the known names nearest to an unknown one; empty without any."""
    near = difflib.get_close_matches(name, list(known), cutoff=0.8)
    return f"did you mean {' or '.join(near)}?" if near else ""


def refuse_tolerance(reason: str, tolerance: float | None) -> None:
    """Training with a tolerance is refused for a reason.

    Raises:
        ConfigurationError: there is one.
    """
    if tolerance is not None:
        raise ConfigurationError(
            f"{reason}, so `tolerance` can't stop it early in training; set only `test_tolerance`",
            option="tolerance",
        )
