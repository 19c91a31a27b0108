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

STOPPING = ("sample", "released")
BLOCKS = ("joint", "first")
LEAST_TERM = 1e-9
"""Norm over the batch, in units of the loss, at which the released code ends the series."""


@ADJOINTS.register("neumann")
@dataclass(frozen=True)
class Neumann(Equilibrium):
    """`g = sum_{k=0..K} (J^T)^k g0`: the gradient of `rbp`.

    Each sample stops by itself (`stopping="sample"`): its series ends when
    `|v_k| <= tolerance |g0|` (that term is still used), when a term grows, `|v_k| > |v_{k-1}|` or
    is not finite (that term is dropped, the sample counts as diverged), or after `terms` terms.

    The released code of Linsley et al. 2020 has one series for the batch of a process and one norm
    over all of it (`stopping="released"`, with `norm_cap=1.0`): it ends before the term with which
    the norm of the *running sum* would exceed the cap, in units of the loss, or whose own norm is
    larger than that of the term before, or below 1e-9. That silently gives the one-step gradient
    whenever the loss, or an AMP loss scale, is large.

    Attributes:
        terms: `K >= 0`; 0 gives the one-step gradient.
        tolerance: relative size of a term under which the series has converged; 0 for none. Without
            effect on `released`.
        norm_cap: most that the norm of the running sum over all samples may be, in units of the
            loss (released: 1.0), or `None` for no cap. With `stopping` at `sample` it is looked at
            one term later than in the released code: the term that exceeds it counts.
        stopping: `sample`, or `released` for one series of all samples; see above.
        blocks: of a state of several tensors, as the `(h, c)` of a ConvLSTM: `joint` for a series
            through its whole Jacobian, or `first` for one through the first tensor alone,
            `dh'/dh`, as in the released code. What arrives at the others goes on through one step.
        precision: of the products, `full` or `bf16`; see `PlainSteps`.
    """

    terms: int = 15
    tolerance: float = 1e-4
    norm_cap: float | None = None
    stopping: str = "sample"
    blocks: str = "joint"
    precision: str = "full"

    def __post_init__(self) -> None:
        settle(
            self,
            terms=integer("terms", self.terms, 0),
            tolerance=number("tolerance", self.tolerance, least=0),
            norm_cap=number_or_none("norm_cap", self.norm_cap, least=0),
        )
        one_of("stopping", self.stopping, STOPPING)
        one_of("blocks", self.blocks, BLOCKS)
        one_of("precision", self.precision, PRECISIONS)

    @property
    def separable(self) -> bool:  # type: ignore[override]
        """The norm cap, and the released series, are one for the whole batch."""
        return self.norm_cap is None and self.stopping == "sample"

    def solve(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
        """See `Equilibrium.solve`."""
        solve = self._by_sample if self.stopping == "sample" else self._as_released
        if self.blocks == "joint":
            return solve(vjp, g0, scale, report)
        others = tuple(torch.zeros_like(part) for part in g0[1:])
        found = solve(lambda first: vjp((*first, *others))[:1], g0[:1], scale, report)
        return (*found, *g0[1:])

    def _by_sample(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
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
                active = active & (_batch_norm(total, scale) <= self.norm_cap)
                vector = where_samples(active, vector)
            vector = vjp(vector)
            size = sample_norm(vector)
            growth = torch.where(previous > 0, size / previous, torch.zeros_like(size))
            shrinks = torch.isfinite(size) & (size <= previous)
            ratio = torch.where(active, growth, ratio)
            diverged = diverged | (active & ~shrinks)
            accepted = active & shrinks
            vector = where_samples(accepted, vector)
            total = _sum(total, vector)
            used = used + accepted
            active = accepted & (size > self.tolerance * first)
            previous = size
        report.terms, report.contraction_ratio, report.diverged = used, ratio, diverged
        return total

    def _as_released(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
        total, vector, previous = g0, g0, sample_norm(g0)
        # One value for all samples, kept for each of them, as reports have it.
        longest = _batch_norm(g0, scale)
        active = (longest > 0).expand(previous.shape)
        used = torch.zeros_like(previous)
        ratio = torch.full_like(previous, float("nan"))
        diverged = torch.zeros_like(active)
        cap = torch.inf if self.norm_cap is None else self.norm_cap
        for _ in range(self.terms):
            # On a GPU asking costs a synchronisation, more than the terms it might save.
            if not previous.is_cuda and not active.any():
                break
            vector = where_samples(active, vjp(vector))
            size, following = sample_norm(vector), _sum(total, vector)
            ratio = torch.where(active & (previous > 0), size / previous, ratio)
            norm, length = _batch_norm(following, scale), _batch_norm(vector, scale)
            shrinks = torch.isfinite(norm) & (length <= longest)
            diverged = diverged | (active & ~shrinks)
            active = active & shrinks & (norm <= cap) & (length >= LEAST_TERM)
            total, used = where_samples(active, following, total), used + active
            previous, longest = size, length
        report.terms, report.contraction_ratio, report.diverged = used, ratio, diverged
        return total


def _sum(parts: Parts, others: Parts) -> Parts:
    return tuple(a + b for a, b in zip(parts, others, strict=True))


def _batch_norm(parts: Parts, scale: Tensor) -> Tensor:
    """Over all samples and parts, in units of the loss, 0-dimensional."""
    return (sample_norm(parts) * scale).square().sum().sqrt()
