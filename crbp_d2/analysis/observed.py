"""What the circuit inside a model sees and does, for any model with one recurrence.

Shape shorthand: N samples of the circuit (images of a contour model, RoIs of a mask head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crbp_d2.analysis.outputs import Batch, change_since, find_recurrence
from crbp_d2.core import Circuit, Parts, flatten


@dataclass(frozen=True)
class Observed:
    """One run of a circuit.

    Attributes:
        circuit: the map with its drive.
        states: chosen step -> parts `(N, ...)`.
        changes: `|h_t - h_{t-1}| / |h_t|` of every step from 1 to the last, `(T, N)`; the start
            counts as zero.
        pooled: the first part's global average at every step, `(T, N, C)`.
        classes: `(N,)` the predicted classes of a mask head's RoIs; `None` for other models.
    """

    circuit: Circuit
    states: dict[int, Parts]
    changes: Tensor
    pooled: Tensor
    classes: Tensor | None


def observe_circuit(model: Any, batch: Batch, at: Sequence[int]) -> Observed:
    """Run a model, its circuit up to the last of some steps, and watch the circuit.

    Samples don't stop where `CRBP.SOLVER.TEST_TOLERANCE` would have them: a circuit that is not run
    does not move, which says nothing of it.

    Args:
        model: with one recurrence, in evaluation mode.
        batch: what the model takes.
        at: steps whose states are kept, at least 1.

    Raises:
        ConfigurationError: the model has no recurrence, or several.
    """
    recurrence = find_recurrence(model)
    entered: dict[str, Any] = {}
    states: dict[int, Parts] = {}
    changes: list[Tensor] = []
    pooled: list[Tensor] = []
    previous: Parts = ()

    def observe(step: int, parts: Parts) -> None:
        nonlocal previous
        changes.append(change_since(previous, parts).cpu())
        first = parts[0]
        pooled.append((first.mean(dim=(2, 3)) if first.dim() == 4 else flatten(first)).cpu())
        if step in at:
            states[step] = parts
        previous = parts

    def enter(_recurrence: nn.Module, inputs: tuple[Any, ...]) -> None:
        entered["drive"] = inputs[0]

    def enter_head(_head: nn.Module, inputs: tuple[Any, ...]) -> None:
        entered["classes"] = torch.cat([one.pred_classes for one in inputs[1]])

    handles = [recurrence.register_forward_pre_hook(enter)]
    if hasattr(model, "roi_heads"):
        handles.append(model.roi_heads.mask_head.register_forward_pre_hook(enter_head))
    usual = recurrence.solver
    recurrence.set_test_tolerance(None)
    try:
        with torch.no_grad(), recurrence.observing(observe, steps=max(at)):
            model(batch)
    finally:
        recurrence.solver = usual
        for handle in handles:
            handle.remove()
    drive = entered["drive"]
    return Observed(
        circuit=recurrence.circuit(drive),
        states=states,
        changes=torch.stack(changes),
        pooled=torch.stack(pooled),
        classes=entered.get("classes"),
    )
