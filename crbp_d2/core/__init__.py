"""Recurrent circuits and the algorithms that train them: torch only, usable without Detectron2.

from crbp_d2.core import Recurrence

recurrence = Recurrence(cell, algorithm="crbp", steps=20)   # cell(drive, state) -> next state
result = recurrence(drive)
loss = task_loss(readout(result.state)) + sum(result.penalties.values())
"""

from crbp_d2.core.cells import CELLS, ConvLSTMCell, HGRUCell, MaskHGRUCell
from crbp_d2.core.diagnostics import AdjointReport, Diagnostics, spectral_radius
from crbp_d2.core.errors import CellError, ConfigurationError, NonFiniteError
from crbp_d2.core.estimators import ESTIMATORS, build_estimator
from crbp_d2.core.penalties import (
    PENALTIES,
    JacobianFrobeniusPenalty,
    LipschitzCoefficientPenalty,
    ResidualPenalty,
    SpectralPenalty,
    WeightSchedule,
)
from crbp_d2.core.recurrence import Recurrence
from crbp_d2.core.result import RecurrenceResult

__all__ = [
    "CELLS",
    "ESTIMATORS",
    "PENALTIES",
    "AdjointReport",
    "CellError",
    "ConfigurationError",
    "ConvLSTMCell",
    "Diagnostics",
    "HGRUCell",
    "JacobianFrobeniusPenalty",
    "LipschitzCoefficientPenalty",
    "MaskHGRUCell",
    "NonFiniteError",
    "Recurrence",
    "RecurrenceResult",
    "ResidualPenalty",
    "SpectralPenalty",
    "WeightSchedule",
    "build_estimator",
    "spectral_radius",
]
