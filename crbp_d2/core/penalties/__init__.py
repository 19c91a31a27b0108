"""Penalties that make the map a contraction near its last state.

Each maps a recorded pair, `before` and `after = F(x, before)`, to one value; all need double
backward. Several may be given to one `Recurrence`, and their weights may follow a schedule.

To add one, write a frozen dataclass like these and register it under a name.
"""

from crbp_d2.core.penalties.base import PENALTIES, Penalty, Weight, WeightSchedule
from crbp_d2.core.penalties.frobenius import JacobianFrobeniusPenalty
from crbp_d2.core.penalties.lcp import LipschitzCoefficientPenalty
from crbp_d2.core.penalties.spectral import SpectralPenalty

__all__ = [
    "PENALTIES",
    "JacobianFrobeniusPenalty",
    "LipschitzCoefficientPenalty",
    "Penalty",
    "SpectralPenalty",
    "Weight",
    "WeightSchedule",
]
