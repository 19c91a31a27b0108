"""`deq`: a deep equilibrium model whose forward and adjoint equations torchdeq solves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crbp_d2.core.adjoint import adjoint_residual, equilibrium_gradient
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.errors import ConfigurationError, choices, refuse_tolerance
from crbp_d2.core.state import Parts, VectorJacobianProduct, as_leaves, rows
from crbp_d2.core.unrolled import Run, Unrolled

SOLVERS = ("anderson", "broyden", "fixed_point_iter")


@dataclass(frozen=True)
class DeepEquilibrium:
    """Root finding in place of plain steps, and implicit differentiation (Bai et al. 2019).

    The number of steps of the run bounds the forward solver's evaluations of `F`, its last one
    being the recorded step. Needs the package torchdeq (`pip install torchdeq`).

    Attributes:
        forward_solver: `anderson`, `broyden` or `fixed_point_iter`.
        backward_solver: the same, for the adjoint equation.
        forward_tolerance: relative residual at which the forward solver stops.
        backward_tolerance: relative residual at which the adjoint solver stops.
        backward_iterations: evaluations of the adjoint solver at most.
    """

    forward_solver: str = "anderson"
    backward_solver: str = "anderson"
    forward_tolerance: float = 1e-4
    backward_tolerance: float = 1e-6
    backward_iterations: int = 40

    def __post_init__(self) -> None:
        for name in ("forward_solver", "backward_solver"):
            if getattr(self, name) not in SOLVERS:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}; choose from {choices(SOLVERS)}"
                )
        if self.backward_iterations < 3:
            raise ConfigurationError("backward_iterations must be at least 3")

    @property
    def lowerable(self) -> bool:
        """Its solver decides by the residuals it sees."""
        return False

    @property
    def plain_steps(self) -> bool:
        """See `Estimator.plain_steps`: a solver's evaluations are none."""
        return False

    @property
    def separable(self) -> bool:
        """Its solver stops when all samples have settled."""
        return False

    def check(self, steps: int, tolerance: float | None) -> None:
        """At least 4 steps, torchdeq installed, and no tolerance but its own."""
        if steps < 4:
            raise ConfigurationError(
                f"deq needs at least 4 steps for its solver to work with, got {steps}",
                option="steps",
            )
        refuse_tolerance("deq stops by its own forward_tolerance", tolerance)
        _solver(self.forward_solver)

    def advance(self, circuit: Circuit, start: Parts, run: Run) -> tuple[Parts, Tensor]:
        """The solver's estimate of the equilibrium, and the evaluations that it took, `(N,)`."""
        self.check(run.steps, run.tolerance)
        forward = _solver(self.forward_solver)
        counted = 0

        def step(flat: Tensor) -> Tensor:
            nonlocal counted
            counted += 1
            following = circuit.advance(_unflatten(flat, start))
            run.seen(counted, following)
            return _flatten(following)

        if len(start[0]):
            with torch.no_grad():
                found, _, _ = forward(
                    step,
                    _flatten(start),
                    max_iter=run.steps - 1,
                    tol=self.forward_tolerance,
                    stop_mode="rel",
                )
            state = _unflatten(found, start)
        else:
            state = start
        return state, torch.full((len(start[0]),), float(counted), device=start[0].device)

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        found, evaluations = self.advance(circuit, start, run)
        backward = _solver(self.backward_solver)

        def solve_adjoint(
            vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport
        ) -> Parts:
            first = _flatten(g0)
            if not len(first):
                return g0
            flat, _, statistics = backward(
                lambda g: _flatten(vjp(_unflatten(g, g0))) + first,
                torch.zeros_like(first),
                max_iter=self.backward_iterations,
                tol=self.backward_tolerance,
                stop_mode="rel",
            )
            gradient = _unflatten(flat, g0)
            report.terms = statistics["nstep"].float()
            report.residual = adjoint_residual(vjp, g0, gradient)
            return gradient

        before = as_leaves(found)
        after = circuit(before)
        run.seen(run.steps, after)
        state = equilibrium_gradient(after, before, solve_adjoint, run.report)
        return Unrolled(state, before, after, evaluations + 1)


def _solver(name: str) -> Callable[..., Any]:
    try:
        from torchdeq.solver import get_solver
    except ImportError as error:
        raise ConfigurationError("`deq` needs torchdeq: pip install torchdeq") from error
    solver: Callable[..., Any] = get_solver(name)
    return solver


def _flatten(parts: Parts) -> Tensor:
    """`(N, D)`, the samples' parts side by side."""
    return torch.cat([rows(part) for part in parts], dim=1)


def _unflatten(flat: Tensor, template: Parts) -> Parts:
    sizes = [math.prod(part.shape[1:]) for part in template]
    pieces = flat.split(sizes, dim=1)
    return tuple(piece.reshape(part.shape) for piece, part in zip(pieces, template, strict=True))
