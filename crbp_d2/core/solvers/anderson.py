"""Anderson acceleration of the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.mixing import Differences, difference, selected
from crbp_d2.core.options import integer, one_of, settle
from crbp_d2.core.solvers.base import SOLVERS, Observer, Solved, Solver, all_steps
from crbp_d2.core.solvers.precision import PRECISIONS, early_steps_lowered, is_lowered
from crbp_d2.core.state import Parts, sample_norm


@SOLVERS.register("anderson")
@dataclass(frozen=True)
class AndersonSteps(Solver):
    """Evaluations of `F` at mixed points, in place of as many plain steps; see `mixing`.

    The safeguard: a mixed point counts only if its residual `|F(h) - h|` is smaller than that of
    the last point that counted. It is not taken relative to `|F(h)|`, as that falls, too, when a
    state runs away. A sample whose mixed point does not count goes back and takes the plain step,
    and forgets the changes so far. Plain steps always count. The last point is followed by a plain
    step, as the residual of one more mixed point is not known.

    It gains nothing where the state is on its way, as along a contour.

    Attributes:
        memory: changes to mix, at least 1; each takes the memory of two states.
        precision: see `PlainSteps`.
    """

    memory: int = 5
    precision: str = "full"

    def __post_init__(self) -> None:
        settle(self, memory=integer("memory", self.memory, 1))
        one_of("precision", self.precision, PRECISIONS)

    def __call__(
        self, circuit: Circuit, start: Parts, steps: int, observe: Observer | None = None
    ) -> Solved:
        def take(state: Parts, count: int, observe: Observer | None) -> Solved:
            return Solved(self._mixed(circuit, state, count, observe), all_steps(state, count))

        if is_lowered(self.precision, (*circuit.drives, *start)):
            return early_steps_lowered(take, start, steps, observe)
        return take(start, steps, observe)

    def _mixed(
        self, circuit: Circuit, start: Parts, evaluations: int, observe: Observer | None
    ) -> Parts:
        """`F(h)` of the last point that counted."""
        history = Differences(start, self.memory)
        point = value = residual = start
        size = sample_norm(start)
        plain = torch.ones_like(size, dtype=torch.bool)
        for number in range(1, evaluations + 1):
            following = circuit.advance(point)
            if observe is not None:
                observe(number, following)
            change = difference(following, point)
            new_size = sample_norm(change)
            counts = plain | (new_size < size)
            if number > 1:
                history.add(difference(following, value), difference(change, residual), counts)
            value = selected(counts, following, value)
            residual = selected(counts, change, residual)
            size = torch.where(counts, new_size, size)
            if number < evaluations:
                coefficients = history.coefficients(residual)
                point = history.mixed_point(value, coefficients)
                plain = (coefficients == 0).all(dim=1)
        return value
