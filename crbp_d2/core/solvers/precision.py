"""Lower precision inside a solve: where it applies, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from crbp_d2.core.solvers.base import Observer, Solved
from crbp_d2.core.state import Parts

PRECISIONS = ("full", "bf16")

POLISHING_STEPS = 2
"""Last unrecorded steps that keep their precision: they take the state from where bfloat16 settles
to where float32 does."""

Take: TypeAlias = Callable[[Parts, int, Observer | None], Solved]
"""`take(start, steps, observe)`: some way to take steps."""


def lower_precision(tensor: Tensor) -> torch.autocast:
    """The context in which `bf16` runs steps on the device of a tensor."""
    return torch.autocast(tensor.device.type, dtype=torch.bfloat16)


def is_lowered(precision: str, tensors: Iterable[Tensor]) -> bool:
    """Whether a precision changes steps on these tensors, drive and state.

    `bf16` lowers float32 alone: float64 is meant to be exact, and within autocast what can be
    lowered is lower already. Elsewhere it changes nothing.
    """
    return precision == "bf16" and all(
        tensor.dtype == torch.float32 and not torch.is_autocast_enabled(tensor.device.type)
        for tensor in tensors
    )


def early_steps_lowered(take: Take, start: Parts, steps: int, observe: Observer | None) -> Solved:
    """Steps of which all but the last `POLISHING_STEPS` are taken in bfloat16."""
    early = max(steps - POLISHING_STEPS, 0)
    with lower_precision(start[0]):
        first = take(start, early, observe and _in_full_precision(observe))
    last = take(first.state, steps - early, observe and _counting_from(early, observe))
    return Solved(last.state, first.steps + last.steps)


def _in_full_precision(observe: Observer) -> Observer:
    """What an observer computes is its own."""

    def seen(step: int, parts: Parts) -> None:
        with torch.autocast(parts[0].device.type, enabled=False):
            observe(step, parts)

    return seen


def _counting_from(earlier: int, observe: Observer) -> Observer:
    return lambda step, parts: observe(earlier + step, parts)
