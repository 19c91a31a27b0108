"""What an estimator is, what goes into it and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.forward import Observer, relax
from crbp_d2.core.precision import POLISHING_STEPS, lower_precision
from crbp_d2.core.state import Parts, where_samples


@dataclass(frozen=True)
class Run:
    """How to run forward.

    Attributes:
        steps: `T >= 1`.
        tolerance: stop a sample's unrecorded steps early, see `relax`.
        observe: called with every step's state.
        report: where the backward pass reports to.
        lowered: run the early steps and the Neumann series in bfloat16.
    """

    steps: int
    tolerance: float | None = None
    observe: Observer | None = None
    report: AdjointReport = field(default_factory=AdjointReport)
    lowered: bool = False

    def seen(self, step: int, parts: Parts) -> None:
        """Tell the observer of a step."""
        if self.observe is not None:
            self.observe(step, tuple(part.detach() for part in parts))


@dataclass
class Unrolled:
    """A recorded run.

    Attributes:
        state: the last state; its gradient is the estimator's.
        before: input of the last application of `F`, requiring gradients.
        after: `F(x, before)`, recorded with an ordinary graph: penalties work on this pair.
        steps: `(N,)` applications of `F` that each sample took.
        trajectory: the recorded states `h_1..h_T`, for a loss on every step; else empty.
    """

    state: Parts
    before: Parts
    after: Parts
    steps: Tensor
    trajectory: list[Parts] = field(default_factory=list)

    def where(self, condition: Tensor) -> Unrolled:
        """The run with states of zero, and no gradients, where `condition: (N,) bool` is false."""
        return Unrolled(
            state=where_samples(condition, self.state),
            before=self.before,
            after=self.after,
            steps=self.steps,
            trajectory=[where_samples(condition, parts) for parts in self.trajectory],
        )


class Estimator(Protocol):
    """One way to estimate the gradient."""

    @property
    def lowerable(self) -> bool:
        """Whether its unrecorded steps may run in lower precision."""
        ...

    @property
    def plain_steps(self) -> bool:
        """Whether the states before the last one are those of the circuit's own steps."""
        ...

    @property
    def separable(self) -> bool:
        """Whether a sample's gradient depends on its own state before the last step alone, and not
        on earlier states or other samples."""
        ...

    def check(self, steps: int, tolerance: float | None) -> None:
        """Refuse a number of training steps, or a tolerance, that can't work.

        Raises:
            ConfigurationError: naming the option.
        """
        ...

    def advance(self, circuit: Circuit, start: Parts, run: Run) -> tuple[Parts, Tensor]:
        """All steps but the last without a graph, where nothing is learned: the state, and `(N,)`
        the steps taken."""
        ...

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        """Run the circuit from `start`, recorded so that `backward()` gives this estimator's
        gradient.

        Raises:
            ConfigurationError: the options don't fit the number of steps.
        """
        ...


class PlainSteps:
    """What estimators share that run the circuit's own steps forward."""

    @property
    def lowerable(self) -> bool:
        """See `Estimator.lowerable`."""
        return True

    @property
    def plain_steps(self) -> bool:
        """See `Estimator.plain_steps`."""
        return True

    @property
    def separable(self) -> bool:
        """See `Estimator.separable`."""
        return False

    def check(self, steps: int, tolerance: float | None) -> None:
        """Any number of steps will do, and any tolerance."""

    def advance(self, circuit: Circuit, start: Parts, run: Run) -> tuple[Parts, Tensor]:
        """See `Estimator.advance`."""
        return plain_steps_before(circuit, start, run, 1)


UnrecordedSteps: TypeAlias = Callable[[Parts, int, Observer | None], tuple[Parts, Tensor]]
"""`take(start, steps, observe)`: the last state, and `(N,)` the steps each sample took."""


def plain_steps_before(
    circuit: Circuit, start: Parts, run: Run, recorded: int
) -> tuple[Parts, Tensor]:
    """All steps of a run but the `recorded` last ones, without a graph.

    Returns:
        The last state, and `(N,)` the steps each sample took.
    """

    def take(state: Parts, steps: int, observe: Observer | None) -> tuple[Parts, Tensor]:
        return relax(circuit, state, steps, tolerance=run.tolerance, observe=observe)

    return steps_before(take, start, run, recorded)


def steps_before(
    take: UnrecordedSteps, start: Parts, run: Run, recorded: int
) -> tuple[Parts, Tensor]:
    """The same by any way to take them: at once, or the early ones in lower precision first."""
    count = run.steps - recorded
    early = min(count, run.steps - POLISHING_STEPS) if run.lowered else 0
    if early <= 0:
        return take(start, count, run.observe)
    with lower_precision(start[0]):
        state, taken = take(start, early, _observed(run.observe, 0))
    state, more = take(state, count - early, _observed(run.observe, early))
    return state, taken + more


def _observed(observe: Observer | None, earlier: int) -> Observer | None:
    """Counts on from earlier steps, in full precision: what an observer computes is its own."""
    if observe is None:
        return None

    def seen(step: int, parts: Parts) -> None:
        with torch.autocast(parts[0].device.type, enabled=False):
            observe(earlier + step, parts)

    return seen


def all_steps(start: Parts, steps: int) -> Tensor:
    """`(N,)`: every sample of `start` takes all steps."""
    return torch.full((len(start[0]),), float(steps), device=start[0].device)
