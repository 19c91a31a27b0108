"""What an adjoint is: its interface, its result and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.registry import Registry
from crbp_d2.core.solvers.base import Solver
from crbp_d2.core.state import Parts


@dataclass
class Recorded:
    """The last steps of a run, with a graph.

    Attributes:
        before: input of the last application of `F`, requiring gradients.
        after: `F(x, before)`, with an ordinary graph: penalties work on this pair.
        trajectory: the states after each recorded step; the last is the result. Their gradient is
            the adjoint's.
    """

    before: Parts
    after: Parts
    trajectory: list[Parts]

    @property
    def state(self) -> Parts:
        """The last state."""
        return self.trajectory[-1]


class Adjoint(ABC):
    """Records the last steps so that `backward()` gives its estimate of the gradient.

    Attributes:
        separable: whether a sample's gradient follows from its own last step alone, and not from
            earlier states or other samples.
    """

    separable: ClassVar[bool] = False

    def check(self, solver: Solver, steps: int) -> None:  # noqa: B027  most take any
        """Refuse a solver, or a number of steps in training, that it can't work with.

        Raises:
            ConfigurationError: naming the option.
        """

    def recorded(self, steps: int) -> int:
        """How many of the last steps it records."""
        return 1

    @abstractmethod
    def record(self, circuit: Circuit, state: Parts, steps: int, report: AdjointReport) -> Recorded:
        """Take and record the last steps.

        Args:
            circuit: the map.
            state: before them, parts `(N, ...)`.
            steps: how many.
            report: filled in the backward pass.
        """


ADJOINTS: Registry[Adjoint] = Registry("adjoint")
