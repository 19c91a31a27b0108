"""What a run of a recurrence gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from crbp_d2.core.diagnostics import Diagnostics
from crbp_d2.core.state import State


@dataclass
class RecurrenceResult:
    """What a run gives.

    Attributes:
        state: the last state, in the structure the cell uses; its gradient is the estimator's.
        states: `h_1..h_T` if the estimator puts a loss on every step, else empty.
        early_states: one state of an earlier step in training with `early_from`, else empty.
        penalties: weighted, ready to be added to the loss; empty outside training.
        diagnostics: residual, steps, penalty values; after `backward()` also its report.
    """

    state: State
    states: list[State] = field(default_factory=list)
    early_states: list[State] = field(default_factory=list)
    penalties: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: Diagnostics = field(
        default_factory=lambda: Diagnostics(torch.empty(0), torch.empty(0))
    )
