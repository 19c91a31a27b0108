"""What goes into an estimator and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.forward import Observer
from crbp_d2.core.state import Parts, where_samples


@dataclass(frozen=True)
class Run:
    """How to run forward.

    Attributes:
        steps: `T >= 1`.
        tolerance: stop a sample's unrecorded steps early, see `relax`.
        observe: called with every step's state.
        report: where the backward pass reports to.
    """

    steps: int
    tolerance: float | None = None
    observe: Observer | None = None
    report: AdjointReport = field(default_factory=AdjointReport)

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
