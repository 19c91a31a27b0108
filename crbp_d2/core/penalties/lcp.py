"""The Lipschitz coefficient penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.options import number, one_of, settle, switch
from crbp_d2.core.penalties.base import PENALTIES, Penalty, Weight, reduce
from crbp_d2.core.state import Parts, vector_jacobian_product

BLOCKS = ("joint", "diagonal")


@PENALTIES.register("lcp")
@dataclass(frozen=True)
class LipschitzCoefficientPenalty(Penalty):
    """LCP: `max((1^T J)_i - bound, 0)^2` over the elements `i` of the state (Linsley et al. 2020,
    Fig. S1).

    One vector-Jacobian product with a vector of ones bounds the column sums of `J`. They are
    signed: the penalty can be 0 while columns with large negative sums, or the spectral radius,
    stay large.

    Attributes:
        weight: the paper's lambda. Pathfinder: 10 with `mean`; the released panoptic model: 0.001
            with `sum`.
        bound: `mu in [0, 1)`. Pathfinder 0.9, panoptic 0.95.
        two_sided: penalise `|(1^T J)_i|`, also the negative sums that the paper's form leaves free.
        blocks: of a state of several tensors, as the `(h, c)` of a ConvLSTM: `joint` for the column
            sums of its whole Jacobian, or `diagonal` for those of each tensor's own block alone,
            `1^T dh'/dh` and `1^T dc'/dc`, as in the released code.
        reduction: `mean` or `sum` over all elements of the state; a sum grows with the number of
            samples.
        max_samples: see `Penalty`.
    """

    weight: Weight = 10.0
    bound: float = 0.9
    two_sided: bool = False
    blocks: str = "joint"
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "lcp"

    def __post_init__(self) -> None:
        label = f"{self.name}: bound (mu)"
        settle(
            self,
            bound=number("bound", self.bound, least=0, below=1, label=label),
            two_sided=switch("two_sided", self.two_sided, label=f"{self.name}: two_sided"),
        )
        one_of("blocks", self.blocks, BLOCKS, label=f"{self.name}: blocks")
        super().__post_init__()

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        if self.blocks == "joint":
            sums = _column_sums(before, after)
        else:
            pairs = zip(before, after, strict=True)
            sums = tuple(_column_sums((one,), (following,))[0] for one, following in pairs)
        if self.two_sided:
            sums = tuple(part.abs() for part in sums)
        return reduce([(part - self.bound).clamp(min=0).square() for part in sums], self.reduction)


def _column_sums(before: Parts, after: Parts) -> Parts:
    """`1^T J`, parts like `before`, with a graph."""
    ones = tuple(torch.ones_like(part) for part in after)
    return vector_jacobian_product(after, before, ones, create_graph=True)
