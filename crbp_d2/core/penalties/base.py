"""What a penalty is: its interface, its weight and the registry."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.options import integer_or_none, number, one_of, settle
from crbp_d2.core.registry import Registry
from crbp_d2.core.state import Parts

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that changes linearly between points of training, and is constant outside them.

    Attributes:
        points: `((iteration, weight), ...)`, iterations ascending. Learn first, contract
            afterwards: `((1000, 0.0), (2000, 10.0))`.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        settle(
            self,
            points=tuple(
                (
                    number("points", iteration, label="an iteration of a schedule"),
                    number("points", weight, label="a weight of a schedule"),
                )
                for iteration, weight in self.points
            ),
        )
        iterations = [iteration for iteration, _ in self.points]
        if not iterations or any(b <= a for a, b in itertools.pairwise(iterations)):
            raise ConfigurationError(
                f"a schedule needs points of ascending iterations, got {self.points}",
                option="points",
            )
        if any(weight < 0 for _, weight in self.points):
            raise ConfigurationError(
                f"weights must be at least 0, got {self.points}", option="points"
            )

    def at(self, iteration: float) -> float:
        """The weight at an iteration."""
        previous_iteration, previous_weight = self.points[0]
        for point, weight in self.points:
            if iteration < point:
                if point == previous_iteration:
                    return previous_weight
                done = (iteration - previous_iteration) / (point - previous_iteration)
                return previous_weight + max(done, 0.0) * (weight - previous_weight)
            previous_iteration, previous_weight = point, weight
        return previous_weight


Weight: TypeAlias = float | WeightSchedule


@dataclass(frozen=True)
class Penalty(ABC):
    """What a `Recurrence` adds to the loss: a value of its last recorded step.

    Attributes:
        weight: factor, constant or by a schedule. The value itself is unweighted.
        reduction: `mean` or `sum` over the samples: what a value on some of them stands for.
        max_samples: compute it on this many samples, drawn at random, on a graph of their own
            (memory); `None` for all samples, on the graph that is there already.
        name: key of the value among losses and diagnostics; that of the class if empty.
    """

    weight: Weight = 1.0
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        name = self.name or type(self).__name__.lower()
        one_of("reduction", self.reduction, REDUCTIONS, label=f"{name}: reduction")
        weight = self.weight
        if not isinstance(weight, WeightSchedule):
            weight = number("weight", weight, least=0, label=f"{name}: weight")
        label = f"{name}: max_samples"
        settle(
            self,
            name=name,
            weight=weight,
            max_samples=integer_or_none("max_samples", self.max_samples, 1, label=label),
        )

    @abstractmethod
    def __call__(self, before: Parts, after: Parts) -> Tensor:
        """The unweighted value, 0-dimensional, at least 0; 0 without samples.

        Args:
            before: the state before the last step, leaves or views that require gradients.
            after: `F(x, before)`, recorded, so that `autograd.grad` from it to `before` gives
                products with the Jacobian.
        """


PENALTIES: Registry[Penalty] = Registry("penalty")


def reduce(values: Sequence[Tensor], reduction: str) -> Tensor:
    """The mean or sum over all elements; 0 without any."""
    total = torch.stack([value.sum() for value in values]).sum()
    if reduction == "sum":
        return total
    return total / max(sum(value.numel() for value in values), 1)
