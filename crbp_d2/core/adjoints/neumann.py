"""The Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.adjoints.base import ADJOINTS
from crbp_d2.core.adjoints.equilibrium import Equilibrium
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.options import integer, number, number_or_none, one_of, settle
from crbp_d2.core.solvers.precision import PRECISIONS
from crbp_d2.core.state import Parts, VectorJacobianProduct, sample_norm, where_samples


@ADJOINTS.register("neumann")
@dataclass(frozen=True)
class Neumann(Equilibrium):
    """`g = sum_{k=0..K} (J^T)^k g0`, each sample with its own stopping: the gradient of `rbp`.

    A sample's series ends when `|v_k| <= tolerance |g0|` (that term is still used), when a term
    grows, `|v_k| > |v_{k-1}|` or is not finite (that term is dropped, the sample counts as
    diverged), or after `terms` terms.

    Attributes:
        terms: `K >= 0`; 0 gives the one-step gradient.
        tolerance: relative size of a term under which the series has converged; 0 for none.
        norm_cap: the released code of the paper ends the series once the norm of the *running sum*
            over all samples exceeds 1, in units of the loss. That silently gives the one-step
            gradient whenever the loss, or an AMP loss scale, is large. `None` (default) for no such
            cap; 1.0 reproduces it.
        precision: of the products, `full` or `bf16`; see `PlainSteps`.
    """

    terms: int = 15
    tolerance: float = 1e-4
    norm_cap: float | None = None
    precision: str = "full"

    def __post_init__(self) -> None:
        settle(
            self,
            terms=integer("terms", self.terms, 0),
            tolerance=number("tolerance", self.tolerance, least=0),
            norm_cap=number_or_none("norm_cap", self.norm_cap, least=0),
        )
        one_of("precision", self.precision, PRECISIONS)

    @property
    def separable(self) -> bool:  # type: ignore[override]
        """The norm cap is one for the whole batch."""
        return self.norm_cap is None

    def solve(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
        """See `Equilibrium.solve`."""
        first = sample_norm(g0)
        total, vector, previous = g0, g0, first
        active = first > 0
        used = torch.zeros_like(first)
        ratio = torch.full_like(first, float("nan"))
        diverged = torch.zeros_like(active)
        for _ in range(self.terms):
            # On a GPU asking costs a synchronisation, more than the terms it might save.
            if not first.is_cuda and not active.any():
                break
            if self.norm_cap is not None:
                norm = (sample_norm(total) * scale).square().sum().sqrt()
                active = active & (norm <= self.norm_cap)
                vector = where_samples(active, vector)
            vector = vjp(vector)
            size = sample_norm(vector)
            growth = torch.where(previous > 0, size / previous, torch.zeros_like(size))
            shrinks = torch.isfinite(size) & (size <= previous)
            ratio = torch.where(active, growth, ratio)
            diverged = diverged | (active & ~shrinks)
            accepted = active & shrinks
            vector = where_samples(accepted, vector)
            total = tuple(t + v for t, v in zip(total, vector, strict=True))
            used = used + accepted
            active = accepted & (size > self.tolerance * first)
            previous = size
        report.terms, report.contraction_ratio, report.diverged = used, ratio, diverged
        return total
