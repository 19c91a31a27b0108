"""Anderson acceleration of the adjoint equation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.adjoints.base import ADJOINTS
from crbp_d2.core.adjoints.equilibrium import Equilibrium
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.mixing import Differences, difference, selected
from crbp_d2.core.options import integer, number, one_of, settle
from crbp_d2.core.solvers.precision import PRECISIONS
from crbp_d2.core.state import Parts, VectorJacobianProduct, sample_norm, where_samples


@ADJOINTS.register("anderson")
@dataclass(frozen=True)
class AndersonAdjoint(Equilibrium):
    """`g = g0 + J^T g` by Anderson acceleration, each sample with its own stopping.

    The equation is linear, so the residual `g0 + J^T g - g` of a mixture is known without another
    product, and the next product starts from the mixture that makes it least. With a memory of all
    terms this is GMRES (Walker and Ni 2011); with a shorter one the residual still never rises. No
    plain step could do better from where it is, so none is taken: a sample whose residual does not
    fall, or whose product is not finite, keeps the solution it has and counts as diverged. Unlike
    the Neumann series this also solves the equation of a map that does not contract.

    The report: `terms` are products that entered; `contraction_ratio` is `|J^T r| / |r|` of the
    last residual `r` that was multiplied, so not above `|J|`, and near the spectral radius where
    slow modes are what is left; `residual` is that of the solution.

    Attributes:
        terms: vector-Jacobian products; 0 gives the one-step gradient. 10 are as near to the exact
            gradient as a series of 15, and 7 nearly so (docs/results/time.md).
        memory: changes to mix, at least 1; each takes the memory of two states.
        tolerance: a sample is done once its residual is under this fraction of `|g0|`.
        precision: of the products, `full` or `bf16`; see `PlainSteps`.
    """

    terms: int = 10
    memory: int = 5
    tolerance: float = 1e-4
    precision: str = "full"

    def __post_init__(self) -> None:
        settle(
            self,
            terms=integer("terms", self.terms, 0),
            memory=integer("memory", self.memory, 1),
            tolerance=number("tolerance", self.tolerance, least=0),
        )
        one_of("precision", self.precision, PRECISIONS)

    def solve(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
        """See `Equilibrium.solve`."""
        history = Differences(g0, self.memory)
        first = size = sample_norm(g0)
        done = max(self.tolerance, torch.finfo(first.dtype).eps) * first
        total, residual = tuple(torch.zeros_like(part) for part in g0), g0
        active = first > 0
        used = torch.zeros_like(first)
        ratio = torch.full_like(first, float("nan"))
        diverged = torch.zeros_like(active)
        for _ in range(self.terms):
            # On a GPU asking costs a synchronisation, more than the products it might save.
            if not first.is_cuda and not active.any():
                break
            product = vjp(residual)
            growth = sample_norm(product) / size
            ratio = torch.where(active, growth, ratio)
            history.add(residual, difference(product, residual), torch.isfinite(growth))
            coefficients = history.coefficients(residual)
            mixed = history.mixed_residual(residual, coefficients)
            new_size = sample_norm(mixed)
            falls = active & (new_size < size)
            total = selected(falls, history.mixed_point(total, coefficients), total)
            residual = selected(falls, mixed, residual)
            size = torch.where(falls, new_size, size)
            used = used + falls
            diverged = diverged | (active & ~falls)
            active = falls & (size > done)
        report.terms, report.contraction_ratio, report.diverged = used, ratio, diverged
        # The one-step gradient, with the residual J^T g0, where no product entered.
        left = torch.where(used > 0, size / first, ratio)
        report.residual = torch.where(first > 0, left, torch.zeros_like(left))
        return where_samples(used > 0, total, g0)
