"""Recurrent circuits and the algorithms that train them: torch only, usable without Detectron2.

from crbp_d2.core import build_recurrence

recurrence = build_recurrence("crbp", cell, steps=20)   # cell(drive, state) -> next state
result = recurrence(drive)
loss = task_loss(readout(result.state)) + sum(result.penalties.values())
"""

from crbp_d2.core.adjoints import (
    ADJOINTS,
    GMRES,
    Adjoint,
    AndersonAdjoint,
    Equilibrium,
    Neumann,
    OneStep,
    Recorded,
    Unroll,
)
from crbp_d2.core.algorithms import ALGORITHMS, Algorithm, build_recurrence, parse_algorithm
from crbp_d2.core.cells import CELLS, ConvLSTMCell, HGRUCell, MaskHGRUCell, ResidualCell
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import (
    AdjointReport,
    Diagnostics,
    relative_residual,
    spectral_radius,
)
from crbp_d2.core.errors import (
    CellError,
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
    did_you_mean,
)
from crbp_d2.core.penalties import (
    PENALTIES,
    JacobianFrobeniusPenalty,
    LipschitzCoefficientPenalty,
    Penalty,
    SpectralPenalty,
    WeightSchedule,
)
from crbp_d2.core.recurrence import Recurrence
from crbp_d2.core.registry import Registry
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.solvers import (
    SOLVERS,
    AndersonSteps,
    Observer,
    PlainSteps,
    Solved,
    Solver,
    TorchDEQ,
)
from crbp_d2.core.state import Drive, Parts, State, as_leaves, flatten, from_parts, to_parts
from crbp_d2.core.wrappers import Chunks, EarlyState, wrapped

__all__ = [
    "ADJOINTS",
    "ALGORITHMS",
    "CELLS",
    "GMRES",
    "PENALTIES",
    "SOLVERS",
    "Adjoint",
    "AdjointReport",
    "Algorithm",
    "AndersonAdjoint",
    "AndersonSteps",
    "CellError",
    "Chunks",
    "Circuit",
    "ConfigurationError",
    "ConvLSTMCell",
    "Diagnostics",
    "Drive",
    "EarlyState",
    "Equilibrium",
    "HGRUCell",
    "JacobianFrobeniusPenalty",
    "LipschitzCoefficientPenalty",
    "MaskHGRUCell",
    "Neumann",
    "NonFiniteError",
    "Observer",
    "OneStep",
    "Parts",
    "Penalty",
    "PlainSteps",
    "Recorded",
    "Recurrence",
    "RecurrenceResult",
    "Registry",
    "ResidualCell",
    "Solved",
    "Solver",
    "SpectralPenalty",
    "State",
    "TorchDEQ",
    "Unroll",
    "UnsupportedError",
    "WeightSchedule",
    "as_leaves",
    "did_you_mean",
    "flatten",
    "from_parts",
    "parse_algorithm",
    "build_recurrence",
    "relative_residual",
    "spectral_radius",
    "to_parts",
    "wrapped",
]
