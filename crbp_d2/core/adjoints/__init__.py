"""Adjoints: how the loss on the last state reaches weights and drive.

| name       | gradient                                                  | memory in T |
|------------|-----------------------------------------------------------|-------------|
| `unroll`   | through all steps, or the last `length`, damped or not    | O(length)   |
| `one_step` | `g0` through one step                                     | O(1)        |
| `neumann`  | `sum_{k<=K} (J^T)^k g0` through one step                  | O(1)        |
| `anderson` | `(I - J)^-T g0` through one step, in fewer products       | O(1)        |
| `gmres`    | `(I - J)^-T g0` through one step, to a tolerance          | O(1)        |

To add one, write a class like these and register it under a name; one that solves the adjoint
equation `g = g0 + J^T g` inherits from `Equilibrium` and has nothing to write but `solve`.
"""

from crbp_d2.core.adjoints.anderson import AndersonAdjoint
from crbp_d2.core.adjoints.base import ADJOINTS, Adjoint, Recorded
from crbp_d2.core.adjoints.equilibrium import Equilibrium
from crbp_d2.core.adjoints.gmres import GMRES
from crbp_d2.core.adjoints.neumann import Neumann
from crbp_d2.core.adjoints.unroll import OneStep, Unroll

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "AndersonAdjoint",
    "Equilibrium",
    "GMRES",
    "Neumann",
    "OneStep",
    "Recorded",
    "Unroll",
]
