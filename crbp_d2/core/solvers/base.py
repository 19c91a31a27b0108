"""What a solver is: its interface, its result and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.registry import Registry
from crbp_d2.core.state import Parts

Observer: TypeAlias = Callable[[int, Parts], None]
"""`observe(t, state)`, called with `t = 1..T` and the parts of that step, detached."""


@dataclass(frozen=True)
class Solved:
    """Where a solver has come to.

    Attributes:
        state: the last state, parts `(N, ...)`, without a graph.
        steps: `(N,)` evaluations of `F` that each sample took.
    """

    state: Parts
    steps: Tensor


class Solver(ABC):
    """Evaluates `F` without recording a graph.

    Attributes:
        plain: whether what it shows an observer are the circuit's own steps.
        separable: whether a sample's result does not depend on the others of its batch.
    """

    plain: ClassVar[bool] = False
    separable: ClassVar[bool] = True

    def check(self, cell: nn.Module, steps: int) -> None:  # noqa: B027  most take any
        """Refuse a cell, or a number of steps in training, that it can't work with.

        Raises:
            ConfigurationError: naming the option.
        """

    @abstractmethod
    def __call__(
        self, circuit: Circuit, start: Parts, steps: int, observe: Observer | None = None
    ) -> Solved:
        """Evaluate `F` at most `steps >= 0` times from `start`, parts `(N, ...)`."""


SOLVERS: Registry[Solver] = Registry("solver")


def all_steps(start: Parts, steps: int) -> Tensor:
    """`(N,)`: every sample of `start` takes all steps."""
    return torch.full((start[0].shape[0],), float(steps), device=start[0].device)
