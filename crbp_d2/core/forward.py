"""Steps that no gradient goes through: a fixed number, or until each sample has settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import relative_residual
from crbp_d2.core.state import Parts, select_samples

Observer: TypeAlias = Callable[[int, Parts], None]
"""`observe(t, state)`, called with `t = 1..T` and the parts of that step, detached."""


def relax(
    circuit: Circuit,
    start: Parts,
    steps: int,
    *,
    tolerance: float | None = None,
    observe: Observer | None = None,
) -> tuple[Parts, Tensor]:
    """`h_{t+1} = F(x, h_t)` without a graph.

    Args:
        circuit: the map.
        start: `h_0`, parts `(N, ...)`.
        steps: `T >= 0`, the most steps a sample takes.
        tolerance: a sample stops once `|h_t - h_{t-1}| <= tolerance |h_t|` and leaves the batch, so
            that the work it would have been is saved. `None`: all samples take all steps.
        observe: gets every step's state; a sample that has stopped keeps its last one.

    Returns:
        The last state, and `(N,)` the steps each sample took.
    """
    if tolerance is not None:
        return _relax_until_settled(circuit, start, steps, tolerance, observe)
    state = start
    for step in range(1, steps + 1):
        state = circuit.advance(state)
        if observe is not None:
            observe(step, state)
    return state, torch.full((len(start[0]),), float(steps), device=start[0].device)


def _relax_until_settled(
    circuit: Circuit,
    start: Parts,
    steps: int,
    tolerance: float,
    observe: Observer | None,
) -> tuple[Parts, Tensor]:
    result = tuple(part.clone() for part in start)
    taken = torch.zeros(len(start[0]), device=start[0].device)
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
    return result, taken
