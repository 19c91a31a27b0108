"""The circuit's own steps: a fixed number, or until each sample has settled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from crbp_d2.core.cells.norms import refuse_coupled_samples
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import relative_residual
from crbp_d2.core.graphs import refuse_exporting
from crbp_d2.core.options import number_or_none, one_of, settle
from crbp_d2.core.solvers.base import SOLVERS, Observer, Solved, Solver, all_steps
from crbp_d2.core.solvers.precision import PRECISIONS, early_steps_lowered, is_lowered
from crbp_d2.core.state import Parts, select_samples


@SOLVERS.register("steps")
@dataclass(frozen=True)
class PlainSteps(Solver):
    """`h_{t+1} = F(x, h_t)`.

    Attributes:
        tolerance: in training, a sample stops once `|h_t - h_{t-1}| <= tolerance |h_t|` and leaves
            the batch, so that the work it would have been is saved; `None`: all take all steps.
        test_tolerance: the same outside training.
        precision: `full`, or `bf16`: all steps but the last two in bfloat16. It lowers float32
            outside autocast and leaves everything else alone.
    """

    tolerance: float | None = None
    test_tolerance: float | None = None
    precision: str = "full"

    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("tolerance", "test_tolerance"):
            settle(self, **{name: number_or_none(name, getattr(self, name), above=0)})
        one_of("precision", self.precision, PRECISIONS)

    def check(self, cell: nn.Module, steps: int) -> None:
        """With a tolerance, samples must not depend on each other."""
        if self.tolerance is not None:
            _refuse_coupled(cell)

    def __call__(
        self, circuit: Circuit, start: Parts, steps: int, observe: Observer | None = None
    ) -> Solved:
        tolerance = self.tolerance if circuit.training else self.test_tolerance
        if tolerance is not None:
            _refuse_coupled(circuit.cell)
            refuse_exporting("a tolerance stops steps by their values", "set test_tolerance None")
        if is_lowered(self.precision, (*circuit.drives, *start)):
            full = partial(replace(self, precision="full"), circuit)
            return early_steps_lowered(full, start, steps, observe)
        if tolerance is not None:
            return _until_settled(circuit, start, steps, tolerance, observe)
        state = start
        for step in range(1, steps + 1):
            state = circuit.advance(state)
            if observe is not None:
                observe(step, state)
        return Solved(state, all_steps(start, steps))


def _refuse_coupled(cell: nn.Module) -> None:
    refuse_coupled_samples(cell, "a tolerance takes settled samples out of the batch")


def _until_settled(
    circuit: Circuit, start: Parts, steps: int, tolerance: float, observe: Observer | None
) -> Solved:
    """A sample that has stopped keeps its last state before an observer."""
    result = tuple(part.clone() for part in start)
    taken = all_steps(start, 0)
    running = torch.arange(len(taken), device=taken.device)
    moving, state = circuit, start
    for step in range(1, steps + 1):
        if len(running):
            following = moving.advance(state)
            settled = relative_residual(following, state) <= tolerance
            taken[running] = float(step)
            for whole, part in zip(result, following, strict=True):
                whole[running] = part
            state = following
            if bool(settled.any()):
                running = running[~settled]
                state = select_samples(following, ~settled)
                moving = circuit.select(running)
        elif observe is None:
            break
        if observe is not None:
            observe(step, tuple(part.clone() for part in result))
    return Solved(result, taken)
