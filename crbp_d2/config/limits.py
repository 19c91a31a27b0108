"""Numbers of steps beyond which a run would seem to hang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crbp_d2.core import ConfigurationError

MOST_STEPS = 10_000
"""Of a recurrence, and of what is repeated for its gradient: 500 times the paper's 20."""

_COUNTS = (
    *("SOLVER.STEPS", "SOLVER.TEST_STEPS", "SOLVER.SPREAD", "SOLVER.MEMORY"),
    *("ADJOINT.TERMS", "ADJOINT.MEMORY", "ADJOINT.KRYLOV_SIZE", "ADJOINT.RESTARTS"),
    *("ADJOINT.LENGTH", "PENALTY.SPECTRAL.POWER_STEPS", "PENALTY.FROBENIUS.PROBES"),
    *("CELL.KERNEL_SIZE", "CELL.GATE_KERNEL_SIZE", "CELL.CHANNELS"),
)


def require_few_steps(name: str, value: float) -> None:
    """Refuse more than `MOST_STEPS`.

    Args:
        name: of the option or key, for the message.
        value: given for it.

    Raises:
        ConfigurationError: it is more.
    """
    if value > MOST_STEPS:
        raise ConfigurationError(
            f"{name} is {value:,}: more than {MOST_STEPS:,} would seem to hang; give fewer"
        )


def require_limits(node: Mapping[str, Any]) -> None:
    """Refuse a config that asks for too many of something, in any of its phases, or no channels.

    Args:
        node: `cfg.CRBP`; values of the wrong type are left to what takes them.

    Raises:
        ConfigurationError: naming the key.
    """
    if node["CELL"]["CHANNELS"] < 1:
        raise ConfigurationError(
            f"CRBP.CELL.CHANNELS is {node['CELL']['CHANNELS']}: must be at least 1"
        )
    places = [("CRBP", node)]
    phases = node["PHASES"] if isinstance(node["PHASES"], (list, tuple)) else ()
    for number, entry in enumerate(phases, start=1):
        places.append((f"CRBP.PHASES, phase {number}:", entry))
    for place, one in places:
        for key, value in _given(one):
            require_few_steps(f"{place}{'.' if place == 'CRBP' else ' '}{key}", value)


def _given(node: Any) -> Iterator[tuple[str, float]]:
    for key in _COUNTS:
        value: Any = node
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            yield key, value
