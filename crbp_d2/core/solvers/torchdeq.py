"""The solvers of torchdeq."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.graphs import refuse_exporting
from crbp_d2.core.options import number, one_of, settle
from crbp_d2.core.solvers.base import SOLVERS, Observer, Solved, Solver, all_steps
from crbp_d2.core.state import Parts, flatten_parts, unflatten_parts

METHODS = ("anderson", "broyden", "fixed_point_iter")
LEAST_EVALUATIONS = 3


@SOLVERS.register("torchdeq")
@dataclass(frozen=True)
class TorchDEQ(Solver):
    """Root finding in place of steps (Bai et al. 2019), by the package torchdeq.

    Attributes:
        method: `anderson`, `broyden` or `fixed_point_iter`.
        tolerance: relative residual at which it stops; the number of steps is the most evaluations
            of `F` that it takes.
    """

    method: str = "anderson"
    tolerance: float = 1e-4

    # It stops when all samples have settled.
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        settle(self, tolerance=number("tolerance", self.tolerance, above=0))

    def check(self, cell: nn.Module, steps: int) -> None:
        """At least 4 steps, and torchdeq installed."""
        if steps <= LEAST_EVALUATIONS:
            raise ConfigurationError(
                f"torchdeq needs at least {LEAST_EVALUATIONS + 1} steps to work with, got {steps}",
                option="steps",
            )
        _solver(self.method)

    def __call__(
        self, circuit: Circuit, start: Parts, steps: int, observe: Observer | None = None
    ) -> Solved:
        refuse_exporting("torchdeq stops by values", "take the solver steps")
        self.check(circuit.cell, steps + 1)
        solve = _solver(self.method)
        counted = 0

        def step(flat: Tensor) -> Tensor:
            nonlocal counted
            counted += 1
            following = circuit.advance(unflatten_parts(flat, start))
            if observe is not None:
                observe(counted, following)
            return flatten_parts(following)

        state = start
        if len(start[0]):
            with torch.no_grad():
                found, _, _ = solve(
                    step, flatten_parts(start), max_iter=steps, tol=self.tolerance, stop_mode="rel"
                )
            state = unflatten_parts(found, start)
        return Solved(state, all_steps(start, counted))


def _solver(name: str) -> Callable[..., Any]:
    try:
        from torchdeq.solver import get_solver
    except ImportError as error:
        raise ConfigurationError("`torchdeq` is not installed: pip install torchdeq") from error
    solver: Callable[..., Any] = get_solver(name)
    return solver
