"""The spectral penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.options import integer, number, settle
from crbp_d2.core.penalties.base import PENALTIES, Penalty, Weight, reduce
from crbp_d2.core.state import (
    Parts,
    at_least_float32,
    flatten,
    sample_norm,
    scale_samples,
    vector_jacobian_product,
)


@PENALTIES.register("spectral")
@dataclass(frozen=True)
class SpectralPenalty(Penalty):
    """`relu(|J^T u| / |u| - margin)^2` for each sample, `u` from power steps on `J^T`.

    The power steps turn `u` towards the leading eigenvectors of `J^T`, so the quotient tends to the
    spectral radius, which decides whether the state settles. They are detached; the last product is
    not.

    Attributes:
        weight: factor of the loss.
        margin: radius that costs nothing, in `[0, 1)`.
        power_steps: detached products before the one that is penalised.
        reduction: `mean` or `sum` over the samples.
        max_samples: see `Penalty`.
    """

    weight: Weight = 1.0
    margin: float = 0.9
    power_steps: int = 4
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "spectral"

    def __post_init__(self) -> None:
        steps, margin = f"{self.name}: power_steps", f"{self.name}: margin"
        settle(
            self,
            margin=number("margin", self.margin, least=0, below=1, label=margin),
            power_steps=integer("power_steps", self.power_steps, 0, label=steps),
        )
        super().__post_init__()

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        direction = _normalised(tuple(torch.randn_like(part) for part in after))
        for _ in range(self.power_steps):
            direction = _normalised(vector_jacobian_product(after, before, direction))
        product = vector_jacobian_product(after, before, direction, create_graph=True)
        squared = _squared_norm(product)
        # The square root has no derivative at zero, where nothing is to be penalised either.
        growth = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
        return reduce([(growth - self.margin).clamp(min=0).square()], self.reduction)


def _normalised(parts: Parts) -> Parts:
    size = sample_norm(parts)
    return scale_samples(parts, torch.where(size > 0, 1 / size, torch.zeros_like(size)))


def _squared_norm(parts: Parts) -> Tensor:
    wide = [flatten(at_least_float32(part)) for part in parts]
    return torch.stack([part.square().sum(dim=1) for part in wide]).sum(dim=0)
