"""Estimators of the gradient of an equilibrium, which record one step whatever their number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crbp_d2.core.adjoint import AdjointSolver, equilibrium_gradient, gmres, neumann_series
from crbp_d2.core.anderson import accelerated_steps, anderson_adjoint
from crbp_d2.core.cells.parts import statistics_kept
from crbp_d2.core.checks import require_at_least
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.forward import Observer
from crbp_d2.core.precision import lower_precision
from crbp_d2.core.state import Parts, as_leaves
from crbp_d2.core.unrolled import (
    Estimator,
    PlainSteps,
    Run,
    Unrolled,
    all_steps,
    steps_before,
)

ACCELERATIONS = ("none", "anderson")


class LastStepRecorded(PlainSteps):
    """What the estimators of this module share."""

    @property
    def separable(self) -> bool:
        """See `Estimator.separable`."""
        return True


@dataclass(frozen=True)
class RecurrentBackPropagation(LastStepRecorded):
    """`rbp`: the implicit gradient by a truncated Neumann series; with a penalty it is `crbp`.

    Attributes:
        neumann_terms: `K >= 0`. 0 gives the one-step gradient `jfb`.
        neumann_tolerance: a sample's series ends when a term falls under this fraction of the
            first.
        norm_cap: end the series once the norm of the running sum exceeds this, as the released code
            does with 1.0. `None`: never. See `neumann_series` for what that cap does to the
            gradient.
        acceleration: of the adjoint equation. `none` is the series; `anderson` mixes, see
            `anderson_adjoint`: `neumann_terms` then counts its vector-Jacobian products, and a
            sample ends when its residual falls under `neumann_tolerance`.
        forward_acceleration: of the unrecorded steps. `none` takes plain steps; `anderson` takes as
            many evaluations of `F`, see `accelerated_steps`.
        memory: changes that Anderson acceleration mixes, at least 1; each takes the memory of two
            states.
    """

    neumann_terms: int = 15
    neumann_tolerance: float = 1e-4
    norm_cap: float | None = None
    acceleration: str = "none"
    forward_acceleration: str = "none"
    memory: int = 5

    def __post_init__(self) -> None:
        require_at_least("neumann_terms", self.neumann_terms, 0)
        require_at_least("neumann_tolerance", self.neumann_tolerance, 0)
        require_at_least("memory", self.memory, 1)
        for name in ("acceleration", "forward_acceleration"):
            value = getattr(self, name)
            if value not in ACCELERATIONS:
                raise ConfigurationError(
                    f"{name} is {value!r}; choose from {choices(ACCELERATIONS)}", option=name
                )
        if self.norm_cap is not None:
            require_at_least("norm_cap", self.norm_cap, 0)
            if self.acceleration != "none":
                raise ConfigurationError(
                    "norm_cap ends a plain Neumann series; leave it out with acceleration",
                    option="norm_cap",
                )

    @property
    def plain_steps(self) -> bool:
        """Not with an accelerated forward pass."""
        return self.forward_acceleration == "none"

    @property
    def separable(self) -> bool:
        """The norm cap is one for the whole batch."""
        return self.norm_cap is None

    def check(self, steps: int, tolerance: float | None) -> None:
        """Any number of steps; a tolerance for plain steps only."""
        if not self.plain_steps and tolerance is not None:
            raise ConfigurationError(
                "forward_acceleration evaluates the circuit a fixed number of times: it goes with "
                "neither tolerance nor test_tolerance",
                option="tolerance",
            )

    def advance(self, circuit: Circuit, start: Parts, run: Run) -> tuple[Parts, Tensor]:
        if self.plain_steps:
            return super().advance(circuit, start, run)
        self.check(run.steps, run.tolerance)

        def take(state: Parts, count: int, observe: Observer | None) -> tuple[Parts, Tensor]:
            found = accelerated_steps(circuit, state, count, memory=self.memory, observe=observe)
            return found, all_steps(state, count)

        return steps_before(take, start, run, 1)

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        if self.acceleration == "anderson":
            solver = anderson_adjoint(
                self.neumann_terms, memory=self.memory, tolerance=self.neumann_tolerance
            )
        else:
            solver = neumann_series(
                self.neumann_terms, tolerance=self.neumann_tolerance, norm_cap=self.norm_cap
            )
        return _unroll_equilibrium(self, circuit, start, run, solver)


@dataclass(frozen=True)
class OneStepGradient(LastStepRecorded):
    """`jfb`, Jacobian-free back-propagation: the gradient of the last step alone."""

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        return RecurrentBackPropagation(neumann_terms=0).unroll(circuit, start, run)


@dataclass(frozen=True)
class ImplicitGradient(LastStepRecorded):
    """`implicit`: `(I - J)^-T g0` solved to a tolerance by GMRES, the reference for all others.

    It is the exact gradient of the equilibrium only if the forward steps have reached it.

    Attributes:
        adjoint_tolerance: relative residual of the linear system.
        max_iterations: restarts of GMRES to allow at most.
        krylov_size: vectors kept between restarts; memory is that many states in float64.
    """

    adjoint_tolerance: float = 1e-10
    max_iterations: int = 20
    krylov_size: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.adjoint_tolerance < 1:
            raise ConfigurationError(
                f"adjoint_tolerance must lie in (0, 1), got {self.adjoint_tolerance}",
                option="adjoint_tolerance",
            )
        require_at_least("max_iterations", self.max_iterations, 1)
        require_at_least("krylov_size", self.krylov_size, 1)

    @property
    def lowerable(self) -> bool:
        """It is there to be exact."""
        return False

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        solver = gmres(
            tolerance=self.adjoint_tolerance,
            max_iterations=self.max_iterations,
            krylov_size=self.krylov_size,
        )
        return _unroll_equilibrium(self, circuit, start, run, solver)


def _unroll_equilibrium(
    estimator: Estimator, circuit: Circuit, start: Parts, run: Run, solver: AdjointSolver
) -> Unrolled:
    """`T - 1` steps without a graph and one with it, which serves output, adjoint and penalties."""
    free, taken = estimator.advance(circuit, tuple(part.detach() for part in start), run)
    before = as_leaves(free)
    after = circuit(before)
    run.seen(run.steps, after)
    record = partial(_record_lowered, circuit, free) if run.lowered else None
    state = equilibrium_gradient(after, before, solver, run.report, record=record)
    return Unrolled(state, before, after, taken + 1)


def _record_lowered(circuit: Circuit, state: Parts) -> tuple[Parts, Parts]:
    """The step after `state` once more, in lower precision: `(before, after)`."""
    before = as_leaves(state)
    with torch.enable_grad(), statistics_kept(circuit.cell), lower_precision(state[0]):
        return before, circuit(before)
