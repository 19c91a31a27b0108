"""The equilibrium gradient: `g = (I - J)^-T g0` in place of `g0`, by a series or a linear solver.

At an equilibrium `h* = F(x, h*; w)` the implicit function theorem gives (Almeida 1987, Pineda 1987;
eqs. 12-14 of the supplement of Linsley et al. 2020)

    dL/dw = dL/dh* (I - J)^-1 dF/dw,    J = dF/dh at h*.

`EquilibriumGradient` is the identity in the forward pass; in the backward pass it replaces the
incoming gradient `g0` by the solution of `g = g0 + J^T g` that an adjoint finds, and autograd
carries `g` on through the one recorded step into weights and drive.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from crbp_d2.core.adjoints.base import Adjoint, Recorded
from crbp_d2.core.cells.norms import Buffers, buffers_of, step_again
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.errors import refuse_second_order
from crbp_d2.core.solvers.precision import is_lowered, lower_precision
from crbp_d2.core.state import (
    Parts,
    VectorJacobianProduct,
    as_leaves,
    sample_norm,
    vector_jacobian_product,
)


class Equilibrium(Adjoint):
    """What adjoints share that solve `g = g0 + J^T g` at the last state and record one step."""

    precision = "full"

    separable: ClassVar[bool] = True

    def record(self, circuit: Circuit, state: Parts, steps: int, report: AdjointReport) -> Recorded:
        """See `Adjoint.record`."""
        before, buffers = as_leaves(state), buffers_of(circuit.cell)
        after = circuit(before)
        again = None
        if is_lowered(self.precision, (*circuit.drives, *state)):
            again = partial(_record_lowered, circuit.keeping_weights(), state, buffers)
        found: Parts = EquilibriumGradient.apply(self, report, again, len(after), *after, *before)
        return Recorded(before, after, [found])

    @abstractmethod
    def solve(
        self, vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
    ) -> Parts:
        """Solve `g = g0 + J^T g`.

        Args:
            vjp: `v -> J^T v`.
            g0: parts `(N, ...)`, scaled to a largest element near 1.
            scale: what it was divided by, 0-dimensional.
            report: to fill.

        Returns:
            `g`, parts like `g0`.
        """


class EquilibriumGradient(torch.autograd.Function):
    """Identity forward; backward replaces the gradient by the solution of the adjoint equation.

    A module-level function and not a tensor hook: the penalties call `torch.autograd.grad` on the
    same graph, and a hook would fire there, too. Its backward differentiates with respect to the
    state only, and what it gives can't be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Equilibrium,
        report: AdjointReport,
        record: Callable[[], tuple[Parts, Parts]] | None,
        parts: int,
        *tensors: Tensor,
    ) -> Parts:
        ctx.adjoint, ctx.report, ctx.record, ctx.parts = adjoint, report, record, parts
        ctx.save_for_backward(*tensors)
        return tuple(tensor.detach() for tensor in tensors[:parts])

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order(type(ctx.adjoint).__name__)
        # Read once, as a checkpoint around the circuit hands them out once.
        saved = ctx.saved_tensors
        after, before = saved[: ctx.parts], saved[ctx.parts :]
        graph = None if ctx.record else (before, after)

        def vjp(vector: Parts) -> Parts:
            nonlocal graph
            if graph is None:
                graph = ctx.record()
            return vector_jacobian_product(graph[1], graph[0], vector)

        scale = _power_of_two_scale(incoming)
        scaled = tuple(g / scale for g in incoming)
        gradient = ctx.adjoint.solve(vjp, scaled, scale, ctx.report)
        return (None, None, None, None, *(g * scale for g in gradient), *(None for _ in before))


def adjoint_residual(vjp: VectorJacobianProduct, g0: Parts, gradient: Parts) -> Tensor:
    """`|g0 + J^T g - g| / |g0|` of each sample, `(N,)`; 0 for a sample without gradient."""
    products = vjp(gradient)
    errors = tuple(a + p - g for a, p, g in zip(g0, products, gradient, strict=True))
    size = sample_norm(g0)
    return torch.where(size > 0, sample_norm(errors) / size, torch.zeros_like(size))


def _record_lowered(circuit: Circuit, state: Parts, buffers: Buffers) -> tuple[Parts, Parts]:
    """The step after `state` once more, in lower precision: `(before, after)`."""
    before = as_leaves(state)
    with torch.enable_grad(), step_again(circuit.cell, buffers), lower_precision(state[0]):
        return before, circuit(before)


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
