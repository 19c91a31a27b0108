"""The equilibrium gradient: `g = (I - J)^-T g0` in place of `g0`, by a series or a linear solver.

At an equilibrium `h* = F(x, h*; w)` the implicit function theorem gives (Almeida 1987, Pineda 1987;
eqs. 12-14 of the supplement of Linsley et al. 2020)

    dL/dw = dL/dh* (I - J)^-1 dF/dw,    J = dF/dh at h*.

`EquilibriumGradient` is the identity in the forward pass; in the backward pass it replaces the
incoming gradient `g0` by the solution of `g = g0 + J^T g` that an adjoint solver finds, and
autograd carries `g` on through the one recorded step into weights and drive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.state import (
    Parts,
    VectorJacobianProduct,
    sample_norm,
    vector_jacobian_product,
    where_samples,
)

logger = logging.getLogger(__name__)

AdjointSolver: TypeAlias = Callable[[VectorJacobianProduct, Parts, Tensor, AdjointReport], Parts]
"""`solve(vjp, g0, scale, report) -> g`: solves `g = g0 + J^T g` and fills the report.

`g0` comes scaled to a largest element near 1; `scale` (0-dimensional) is what it was divided by.
"""


class EquilibriumGradient(torch.autograd.Function):
    """Identity forward; backward replaces the gradient by the solution of the adjoint equation.

    A module-level function and not a tensor hook: the penalties call `torch.autograd.grad` on the
    same graph, and a hook would fire there, too. Its backward differentiates with respect to the
    state only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        solver: AdjointSolver,
        report: AdjointReport,
        record: Callable[[], tuple[Parts, Parts]] | None,
        parts: int,
        *tensors: Tensor,
    ) -> Parts:
        ctx.solver, ctx.report, ctx.record, ctx.parts = solver, report, record, parts
        ctx.save_for_backward(*tensors)
        return tuple(tensor.detach() for tensor in tensors[:parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        after, before = ctx.saved_tensors[: ctx.parts], ctx.saved_tensors[ctx.parts :]
        graph = None if ctx.record else (before, after)

        def vjp(vector: Parts) -> Parts:
            nonlocal graph
            if graph is None:
                graph = ctx.record()
            return vector_jacobian_product(graph[1], graph[0], vector)

        scale = _power_of_two_scale(incoming)
        gradient = ctx.solver(vjp, tuple(g / scale for g in incoming), scale, ctx.report)
        return (
            None,
            None,
            None,
            None,
            *(g * scale for g in gradient),
            *(None for _ in before),
        )


def equilibrium_gradient(
    after: Parts,
    before: Parts,
    solver: AdjointSolver,
    report: AdjointReport,
    *,
    record: Callable[[], tuple[Parts, Parts]] | None = None,
) -> Parts:
    """`after` itself, with the gradient of an equilibrium.

    Args:
        after: `F(x, before)`, recorded.
        before: the state it was computed from, requiring gradients.
        solver: how to solve the adjoint equation.
        report: filled in the backward pass.
        record: gives another graph `(before, after)` of the same step for the products of the
            solver, asked for at the first one; `None` takes the one that is there.

    Returns:
        Tensors of the values and shapes of `after`.
    """
    return EquilibriumGradient.apply(solver, report, record, len(after), *after, *before)


def _power_of_two_scale(parts: Parts) -> Tensor:
    """A power of two near the largest element, so that dividing by it is exact.

    The solvers work on gradients of unit size whatever the loss or an AMP loss scale is: neither a
    threshold nor the range of float16 then depends on it. One scale for all samples, as a cell with
    batch statistics mixes them. Not finite or zero: 1.
    """
    largest = torch.stack([p.detach().abs().amax() for p in parts if p.numel()] or [torch.ones(())])
    largest = largest.float().amax()
    usable = torch.isfinite(largest) & (largest > 0)
    exponent = torch.where(usable, largest, torch.ones_like(largest)).log2().round()
    # float32 holds the powers of two from -126 to 127 in full.
    return torch.exp2(exponent.clamp(-120, 120))


def neumann_series(
    terms: int, *, tolerance: float = 0.0, norm_cap: float | None = None
) -> AdjointSolver:
    """`g = sum_{k=0..K} (J^T)^k g0`, each sample with its own stopping.

    A sample's series ends when `|v_k| <= tolerance |g0|` (that term is still used), when a term
    grows, `|v_k| > |v_{k-1}|` or is not finite (that term is dropped, the sample counts as
    diverged), or after `terms` terms.

    Args:
        terms: `K >= 0`; 0 gives the one-step gradient.
        tolerance: relative size of a term under which the series has converged; 0 for none.
        norm_cap: the released code of the paper ends the series once the norm of the *running sum*
            over all samples exceeds 1, in units of the loss. That silently gives the one-step
            gradient whenever the loss, or an AMP loss scale, is large. `None` (default) for no such
            cap; 1.0 reproduces it.
    """

    def solve(vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport) -> Parts:
        first = sample_norm(g0)
        total, vector, previous = g0, g0, first
        active = first > 0
        used = torch.zeros_like(first)
        ratio = torch.full_like(first, float("nan"))
        diverged = torch.zeros_like(active)
        for _ in range(terms):
            # On a GPU asking costs a synchronisation, more than the terms it might save.
            if not first.is_cuda and not active.any():
                break
            if norm_cap is not None:
                active = active & ((sample_norm(total) * scale).square().sum().sqrt() <= norm_cap)
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
            active = accepted & (size > tolerance * first)
            previous = size
        report.terms, report.contraction_ratio, report.diverged = used, ratio, diverged
        return total

    return solve


def gmres(*, tolerance: float, max_iterations: int, krylov_size: int) -> AdjointSolver:
    """`(I - J^T) g = g0` to a relative tolerance by SciPy's GMRES: exactness before speed.

    The whole batch is one system (a cell with batch statistics couples its samples), solved in
    float64 on the CPU; the vector-Jacobian products keep the precision and device of the model.

    Args:
        tolerance: relative residual to reach; for a model in lower precision than float64 at least
            1e-6, as its products allow no more.
        max_iterations: restarts to allow at most.
        krylov_size: vectors kept between restarts.

    Raises:
        ConfigurationError: SciPy is not installed.
    """
    try:
        from scipy.sparse.linalg import LinearOperator
        from scipy.sparse.linalg import gmres as scipy_gmres
    except ImportError as error:
        raise ConfigurationError("`implicit` needs SciPy: pip install scipy") from error

    def solve(vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport) -> Parts:
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

        reachable = tolerance if g0[0].dtype == torch.float64 else max(tolerance, 1e-6)
        right = flatten(g0)
        if len(right) == 0 or not right.any():
            solution = right
        else:
            operator = LinearOperator((len(right),) * 2, matvec=subtract_from_identity, dtype=float)
            found, _ = scipy_gmres(
                operator,
                right.numpy(),
                rtol=reachable,
                atol=0.0,
                restart=min(krylov_size, len(right)),
                maxiter=max_iterations,
                callback=count,
                callback_type="pr_norm",
            )
            solution = torch.from_numpy(found)
        gradient = unflatten(solution)
        report.residual = adjoint_residual(vjp, g0, gradient)
        report.terms = torch.full_like(report.residual, iterations)
        reached = float(report.residual.max()) if len(report.residual) else 0.0
        # float32 products bound what can be reached, whatever was asked.
        allowed = max(10 * tolerance, 1e-4 if g0[0].dtype != torch.float64 else 0.0)
        if reached > allowed:
            logger.warning(
                "the implicit gradient reached a relative residual of %.1e only (asked: %.1e) "
                "after %d iterations; raise max_iterations or krylov_size, or check that I - J is "
                "regular",
                reached,
                tolerance,
                iterations,
            )
        return gradient

    return solve


def adjoint_residual(vjp: VectorJacobianProduct, g0: Parts, gradient: Parts) -> Tensor:
    """`|g0 + J^T g - g| / |g0|` of each sample, `(N,)`; 0 for a sample without gradient."""
    products = vjp(gradient)
    errors = tuple(a + p - g for a, p, g in zip(g0, products, gradient, strict=True))
    size = sample_norm(g0)
    return torch.where(size > 0, sample_norm(errors) / size, torch.zeros_like(size))
