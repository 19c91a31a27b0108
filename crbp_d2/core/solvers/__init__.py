"""Solvers: how the state gets to where gradients begin, by steps that record none.

To add one, write a class like these and register it under a name:

    @SOLVERS.register("halves")
    @dataclass(frozen=True)
    class Halves: ...
"""

from crbp_d2.core.solvers.anderson import AndersonSteps
from crbp_d2.core.solvers.base import SOLVERS, Observer, Solved, Solver
from crbp_d2.core.solvers.steps import PlainSteps
from crbp_d2.core.solvers.torchdeq import TorchDEQ

__all__ = [
    "SOLVERS",
    "AndersonSteps",
    "Observer",
    "PlainSteps",
    "Solved",
    "Solver",
    "TorchDEQ",
]
