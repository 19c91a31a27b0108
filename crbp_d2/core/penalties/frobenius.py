"""The Jacobian-Frobenius penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.options import integer, settle
from crbp_d2.core.penalties.base import PENALTIES, Penalty, Weight, reduce
from crbp_d2.core.state import Parts, vector_jacobian_product


@PENALTIES.register("frobenius")
@dataclass(frozen=True)
class JacobianFrobeniusPenalty(Penalty):
    """`|J|_F^2` by random vector-Jacobian products (Hutchinson; Bai et al. 2106.14342).

    `E |J^T e|^2 = |J|_F^2` for `e` of independent standard normal elements. `mean` divides by the
    number of elements of the state.

    Attributes:
        weight: factor of the loss.
        probes: random vectors to average over.
        reduction: `mean` or `sum` over all elements of the state.
        max_samples: see `Penalty`.
    """

    weight: Weight = 0.01
    probes: int = 1
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "frobenius"

    def __post_init__(self) -> None:
        settle(self, probes=integer("probes", self.probes, 1, label=f"{self.name}: probes"))
        super().__post_init__()

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        values = []
        for _ in range(self.probes):
            probe = tuple(torch.randn_like(part) for part in after)
            product = vector_jacobian_product(after, before, probe, create_graph=True)
            values.append(reduce([part.square() for part in product], self.reduction))
        return torch.stack(values).mean()
