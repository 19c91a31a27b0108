"""Lower precision inside the solve: where it applies, and how."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SOLVE_PRECISIONS = ("full", "bf16")

POLISHING_STEPS = 3
"""Last steps that keep their precision, the recorded one included: they take the state from where
bfloat16 settles to where float32 does."""


def lower_precision(tensor: Tensor) -> torch.autocast:
    """The context in which `solve_precision="bf16"` runs steps on the device of a tensor."""
    return torch.autocast(tensor.device.type, dtype=torch.bfloat16)


def lowers(precision: str, tensors: Iterable[Tensor]) -> bool:
    """Whether a solve precision changes a run on these tensors, drive and start.

    `bf16` lowers float32 alone: float64 is meant to be exact, and within autocast what can be
    lowered is lower already. Elsewhere it changes nothing.
    """
    return precision == "bf16" and all(
        tensor.dtype == torch.float32 and not torch.is_autocast_enabled(tensor.device.type)
        for tensor in tensors
    )
