"""What a run of a recurrence gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from crbp_d2.core.diagnostics import Diagnostics
from crbp_d2.core.state import State


@dataclass
class RecurrenceResult:
    """What a run gives.

    Attributes:
        state: the last state, in the structure the cell uses; its gradient is the adjoint's.
        diagnostics: residual, steps, penalty values; after `backward()` also its report.
        states: the states after each recorded step, the last one among them, for a loss on every
            step; empty if nothing was recorded.
        early_states: one state of an earlier step, if the run was wrapped in `EarlyState`.
        penalties: weighted, ready to be added to the loss; empty outside training.
    """

    state: State
    diagnostics: Diagnostics
    states: list[State] = field(default_factory=list)
    early_states: list[State] = field(default_factory=list)
    penalties: dict[str, Tensor] = field(default_factory=dict)
