"""Penalties that make the map a contraction near its last state.

Each maps a recorded pair, `before` and `after = F(x, before)`, to one value; all need double
backward. Several may be given to one `Recurrence`, and their weights may follow a schedule.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.state import (
    Parts,
    rows,
    sample_norm,
    scale_samples,
    vector_jacobian_product,
    wide,
)

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


class Penalty(Protocol):
    """What a `Recurrence` adds to the loss.

    Attributes:
        name: key of the value among losses and diagnostics.
        weight: factor, constant or by a schedule.
        max_samples: compute it on this many samples, drawn at random, on a graph of their own
            (memory); `None` for all samples, on the graph that is there already.
        reduction: `mean` or `sum` over the samples: what a value on some of them stands for.
    """

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> Weight: ...
    @property
    def max_samples(self) -> int | None: ...
    @property
    def reduction(self) -> str: ...

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        """The unweighted value, 0-dimensional, at least 0, differentiable; 0 without samples."""
        ...


def weight_at(weight: Weight, iteration: float) -> float:
    """The value of a constant or scheduled weight."""
    return weight.at(iteration) if isinstance(weight, WeightSchedule) else weight


@dataclass(frozen=True)
class LipschitzCoefficientPenalty:
    """LCP: `max((1^T J)_i - bound, 0)^2` over the elements `i` of the state (Linsley et al. 2020,
    Fig. S1).

    One vector-Jacobian product with a vector of ones bounds the column sums of `J`. They are
    signed: the penalty can be 0 while columns with large negative sums, or the spectral radius,
    stay large.

    Attributes:
        weight: the paper's lambda. Pathfinder: 10 with `mean`; the released panoptic model: 0.001
            with `sum`.
        bound: `mu in [0, 1)`. Pathfinder 0.9, panoptic 0.95.
        two_sided: penalise `|(1^T J)_i|`, also the negative sums that the paper's form leaves free.
        reduction: `mean` or `sum` over all elements of the state; a sum grows with the number of
            samples.
        max_samples: see `Penalty`.
    """

    weight: Weight = 10.0
    bound: float = 0.9
    two_sided: bool = False
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "lcp"

    def __post_init__(self) -> None:
        if not 0 <= self.bound < 1:
            raise ConfigurationError(
                f"{self.name}: bound (mu) must lie in [0, 1), got {self.bound}", option="bound"
            )
        _check(self)

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        ones = tuple(torch.ones_like(part) for part in after)
        sums = vector_jacobian_product(after, before, ones, create_graph=True)
        if self.two_sided:
            sums = tuple(part.abs() for part in sums)
        return _reduce([(part - self.bound).clamp(min=0).square() for part in sums], self.reduction)


@dataclass(frozen=True)
class JacobianFrobeniusPenalty:
    """`|J|_F^2` by random vector-Jacobian products (Hutchinson; Bai et al. 2106.14342).

    `E |J^T e|^2 = |J|_F^2` for `e` of independent standard normal elements. `mean` divides by the
    number of elements of the state.

    Attributes:
        weight: factor of the loss.
        probes: random vectors to average over.
        reduction: `mean` or `sum` over all elements of the state.
        max_samples: see `Penalty`.
    """

    weight: Weight = 0.01
    probes: int = 1
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "frobenius"

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ConfigurationError(
                f"{self.name}: probes must be at least 1, got {self.probes}", option="probes"
            )
        _check(self)

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        values = []
        for _ in range(self.probes):
            probe = tuple(torch.randn_like(part) for part in after)
            product = vector_jacobian_product(after, before, probe, create_graph=True)
            values.append(_reduce([part.square() for part in product], self.reduction))
        return torch.stack(values).mean()


@dataclass(frozen=True)
class SpectralPenalty:
    """`relu(|J^T u| / |u| - margin)^2` for each sample, `u` from power steps on `J^T`.

    The power steps turn `u` towards the leading eigenvectors of `J^T`, so the quotient tends to the
    spectral radius, which decides whether the state settles. They are detached; the last product is
    not.

    Attributes:
        weight: factor of the loss.
        margin: radius that costs nothing, in `[0, 1)`.
        power_steps: detached products before the one that is penalised.
        reduction: `mean` or `sum` over the samples.
        max_samples: see `Penalty`.
    """

    weight: Weight = 1.0
    margin: float = 0.9
    power_steps: int = 4
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "spectral"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ConfigurationError(
                f"{self.name}: margin must lie in [0, 1), got {self.margin}", option="margin"
            )
        if self.power_steps < 0:
            raise ConfigurationError(
                f"{self.name}: power_steps must be at least 0", option="power_steps"
            )
        _check(self)

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        direction = _normalised(tuple(torch.randn_like(part) for part in after))
        for _ in range(self.power_steps):
            direction = _normalised(vector_jacobian_product(after, before, direction))
        product = vector_jacobian_product(after, before, direction, create_graph=True)
        squared = _squared_norm(product)
        # The square root has no derivative at zero, where nothing is to be penalised either.
        growth = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
        return _reduce([(growth - self.margin).clamp(min=0).square()], self.reduction)


@dataclass(frozen=True)
class ResidualPenalty:
    """`|F(x, h) - h|^2 / |h|^2` for each sample: asks the last state to be where the circuit rests.

    A radius below 1 says how fast differences die away, and not that the last state is near the
    equilibrium: what is read out later may be another answer. The gradient is that of one step.

    Attributes:
        weight: factor of the loss.
        reduction: `mean` or `sum` over the samples.
        max_samples: see `Penalty`.
    """

    weight: Weight = 1.0
    reduction: str = "mean"
    max_samples: int | None = None
    name: str = "residual"

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, before: Parts, after: Parts) -> Tensor:
        rest = tuple(part.detach() for part in before)
        moved = _squared_norm(tuple(a - r for a, r in zip(after, rest, strict=True)))
        size = _squared_norm(rest)
        return _reduce([moved / size.clamp(min=torch.finfo(size.dtype).tiny)], self.reduction)


PENALTIES = {
    "lcp": LipschitzCoefficientPenalty,
    "frobenius": JacobianFrobeniusPenalty,
    "spectral": SpectralPenalty,
    "residual": ResidualPenalty,
}
"""Penalties by name. To add one, write a frozen dataclass like the others and add it here."""


def _normalised(parts: Parts) -> Parts:
    size = sample_norm(parts)
    return scale_samples(parts, torch.where(size > 0, 1 / size, torch.zeros_like(size)))


def _squared_norm(parts: Parts) -> Tensor:
    return torch.stack([rows(wide(part)).square().sum(dim=1) for part in parts]).sum(dim=0)


def _reduce(values: Sequence[Tensor], reduction: str) -> Tensor:
    total = torch.stack([value.sum() for value in values]).sum()
    if reduction == "sum":
        return total
    return total / max(sum(value.numel() for value in values), 1)


def _check(penalty: Penalty) -> None:
    if penalty.reduction not in REDUCTIONS:
        raise ConfigurationError(
            f"{penalty.name}: reduction is {penalty.reduction!r}; choose from "
            f"{choices(REDUCTIONS)}",
            option="reduction",
        )
    if penalty.max_samples is not None and penalty.max_samples < 1:
        raise ConfigurationError(
            f"{penalty.name}: max_samples must be at least 1 or None, got {penalty.max_samples}",
            option="max_samples",
        )
    weight = penalty.weight
    if not isinstance(weight, WeightSchedule) and not weight >= 0:
        raise ConfigurationError(
            f"{penalty.name}: weight must be at least 0, got {weight}", option="weight"
        )
