"""The exact gradient of an equilibrium, by GMRES."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crbp_d2.core.adjoints.base import ADJOINTS
from crbp_d2.core.adjoints.equilibrium import Equilibrium, adjoint_residual
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.options import integer, number, settle
from crbp_d2.core.state import Parts, VectorJacobianProduct

logger = logging.getLogger(__name__)


@ADJOINTS.register("gmres")
@dataclass(frozen=True)
class GMRES(Equilibrium):
    """`(I - J^T) g = g0` to a relative tolerance by SciPy's GMRES: exactness before speed, the
    reference for all others. It is the exact gradient of the equilibrium only if the forward steps
    have reached it.

    The whole batch is one system (a cell with batch statistics couples its samples), solved in
    float64 on the CPU; the vector-Jacobian products keep the precision and device of the model.

    Attributes:
        tolerance: relative residual to reach; for a model in lower precision than float64 at least
            1e-6, as its products allow no more.
        krylov_size: vectors kept between restarts; memory is that many states in float64.
        restarts: most restarts; with 1, `krylov_size` bounds the products.
    """

    tolerance: float = 1e-10
    krylov_size: int = 100
    restarts: int = 20

    def __post_init__(self) -> None:
        settle(
            self,
            tolerance=number("tolerance", self.tolerance, above=0, below=1),
            krylov_size=integer("krylov_size", self.krylov_size, 1),
            restarts=integer("restarts", self.restarts, 1),
        )
        _scipy()

    def solve(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
        """See `Equilibrium.solve`."""
        linalg = _scipy()
        sizes = [part.numel() for part in g0]

        def flatten(parts: Parts) -> Tensor:
            return torch.cat([part.detach().reshape(-1).double().cpu() for part in parts])

        def unflatten(flat: Tensor) -> Parts:
            return tuple(
                piece.reshape(part.shape).to(part)
                for piece, part in zip(flat.split(sizes), g0, strict=True)
            )

        iterations = 0

        def count(_residual: float) -> None:
            nonlocal iterations
            iterations += 1

        def subtract_from_identity(vector: Any) -> Any:
            v = torch.from_numpy(vector.copy())
            return (v - flatten(vjp(unflatten(v)))).numpy()

        reachable = self.tolerance if g0[0].dtype == torch.float64 else max(self.tolerance, 1e-6)
        right = flatten(g0)
        if len(right) == 0 or not right.any():
            solution = right
        else:
            operator = linalg.LinearOperator(
                (len(right),) * 2, matvec=subtract_from_identity, dtype=float
            )
            found, _ = linalg.gmres(
                operator,
                right.numpy(),
                rtol=reachable,
                atol=0.0,
                restart=min(self.krylov_size, len(right)),
                maxiter=self.restarts,
                callback=count,
                callback_type="pr_norm",
            )
            solution = torch.from_numpy(found)
        gradient = unflatten(solution)
        report.residual = adjoint_residual(vjp, g0, gradient)
        report.terms = torch.full_like(report.residual, iterations)
        reached = float(report.residual.max()) if len(report.residual) else 0.0
        # float32 products bound what can be reached, whatever was asked.
        allowed = max(10 * self.tolerance, 1e-4 if g0[0].dtype != torch.float64 else 0.0)
        if reached > allowed:
            logger.warning(
                "the implicit gradient reached a relative residual of %.1e only (asked: %.1e) "
                "after %d iterations; raise restarts or krylov_size, or check that I - J is "
                "regular",
                reached,
                self.tolerance,
                iterations,
            )
        return gradient


def _scipy() -> Any:
    try:
        from scipy.sparse import linalg
    except ImportError as error:
        raise ConfigurationError("`implicit` needs SciPy: pip install scipy") from error
    return linalg
