"""From the configuration to a recurrence; `cfg` goes no further."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import nn

from crbp_d2.core import (
    CELLS,
    ConfigurationError,
    JacobianFrobeniusPenalty,
    LipschitzCoefficientPenalty,
    Recurrence,
    ResidualPenalty,
    SpectralPenalty,
    WeightSchedule,
)
from crbp_d2.core.cells.parts import state_norm
from crbp_d2.core.estimators import parse_algorithm
from crbp_d2.core.penalties import Penalty, Weight

KEYS = {
    "acceleration": "ADJOINT_ACCELERATION",
    "activation_name": "ACTIVATION",
    "bound": "LCP_BOUND",
    "length": "BACKWARD_STEPS",
    "margin": "SPECTRAL_MARGIN",
    "max_iterations": "KRYLOV_RESTARTS",
    "max_samples": "PENALTY_SAMPLES",
    "memory": "ANDERSON_MEMORY",
    "norm_cap": "NEUMANN_NORM_CAP",
    "points": "PENALTY_SCHEDULE",
    "power_steps": "SPECTRAL_POWER_STEPS",
    "reduction": "LCP_REDUCTION",
    "weight": "LCP_WEIGHT, FROBENIUS_WEIGHT, SPECTRAL_WEIGHT or RESIDUAL_WEIGHT",
}
"""Keys of `CRBP` that are not their argument's name in capitals."""

DETECTRON2_NORMS = ("BN", "SyncBN", "FrozenBN", "LN")
"""Norms for the state that is read out, besides those of the cells."""


def recurrence(node: CfgNode) -> Recurrence:
    """The circuit that the keys describe, with its learning algorithm.

    Args:
        node: `cfg.CRBP`.

    Raises:
        ConfigurationError: an unknown name or an impossible value, naming its key.
    """
    with naming_keys():
        if node.EARLY_LOSS_WEIGHT < 0:
            raise ConfigurationError(
                f"must be at least 0, got {node.EARLY_LOSS_WEIGHT}", option="early_loss_weight"
            )
        return Recurrence(
            cell(node),
            algorithm=node.ALGORITHM,
            steps=node.STEPS,
            test_steps=node.TEST_STEPS or None,
            steps_spread=node.STEPS_SPREAD,
            tolerance=node.TOLERANCE or None,
            test_tolerance=node.TEST_TOLERANCE or None,
            penalties=penalties(node),
            early_from=node.EARLY_FROM if node.EARLY_LOSS_WEIGHT else None,
            on_nonfinite=node.ON_NONFINITE,
            compile_steps=node.COMPILE,
            solve_precision=node.SOLVE_PRECISION,
            chunk_samples=node.CHUNK_SAMPLES or None,
            **estimator_options(node),
        )


def cell(node: CfgNode) -> nn.Module:
    """The cell that `node.CELL` names, with those of the keys that are arguments of it.

    Raises:
        ConfigurationError: an unknown name or an impossible value.
    """
    if node.CELL not in CELLS:
        raise ConfigurationError(
            f"unknown cell {node.CELL!r}; choose from {', '.join(sorted(CELLS))}", option="cell"
        )
    if node.CHRONO_STEPS < 0:
        raise ConfigurationError(
            f"must be at least 0, got {node.CHRONO_STEPS}", option="chrono_steps"
        )
    kind = CELLS[node.CELL]
    available = {
        "channels": node.CHANNELS,
        "kernel_size": node.KERNEL_SIZE,
        "gate": node.GATE,
        "norm": node.NORM,
        "norm_scale": node.NORM_SCALE,
        "activation_name": node.ACTIVATION,
        "rectify_state": node.RECTIFY_STATE,
        "gate_bias": node.GATE_BIAS,
        # The answer is asked for from the fewest steps on.
        "chrono_steps": node.CHRONO_STEPS or node.STEPS - node.STEPS_SPREAD,
        "convolution": node.CONVOLUTION,
    }
    taken = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in available.items() if name in taken})


def estimator_options(node: CfgNode) -> dict[str, Any]:
    """The options that the estimator of `node.ALGORITHM` takes, from their keys.

    Raises:
        ConfigurationError: an unknown algorithm, or a series without terms.
    """
    name, _ = parse_algorithm(node.ALGORITHM)
    if name == "rbp":
        if node.NEUMANN_TERMS == 0:
            raise ConfigurationError(
                f"{node.ALGORITHM} without Neumann terms is the one-step gradient: say ALGORITHM "
                "jfb (or jfb+lcp), or set at least 1",
                option="neumann_terms",
            )
        return {
            "neumann_terms": node.NEUMANN_TERMS,
            "neumann_tolerance": node.NEUMANN_TOLERANCE,
            "norm_cap": node.NEUMANN_NORM_CAP or None,
            "acceleration": node.ADJOINT_ACCELERATION,
            "forward_acceleration": node.FORWARD_ACCELERATION,
            "memory": node.ANDERSON_MEMORY,
        }
    if name == "implicit":
        return {
            "adjoint_tolerance": node.ADJOINT_TOLERANCE,
            "krylov_size": node.KRYLOV_SIZE,
            "max_iterations": node.KRYLOV_RESTARTS,
        }
    if name == "bptt":
        return {"every_step": node.LOSS_ON_EVERY_STEP, "checkpointed": node.CHECKPOINT}
    if name == "tbptt":
        return {"length": node.BACKWARD_STEPS}
    if name == "phantom":
        return {"length": node.BACKWARD_STEPS, "damping": node.DAMPING}
    return {}


def penalties(node: CfgNode) -> tuple[Penalty, ...]:
    """The penalties that the keys ask for, none with a weight of zero but the algorithm's own.

    Raises:
        ConfigurationError: an impossible value.
    """
    samples = node.PENALTY_SAMPLES or None

    schedule = tuple(node.PENALTY_SCHEDULE)
    if not all(isinstance(point, (tuple, list)) and len(point) == 2 for point in schedule):
        raise ConfigurationError(
            f"must be ((iteration, factor), ...), got {node.PENALTY_SCHEDULE}", option="points"
        )

    def scheduled(weight: float) -> Weight:
        if not schedule:
            return weight
        return WeightSchedule(tuple((i, weight * factor) for i, factor in schedule))

    scheduled(1.0)  # a wrong schedule is refused whether or not a penalty follows it
    chosen: list[Penalty] = []
    if parse_algorithm(node.ALGORITHM)[1]:
        chosen.append(
            LipschitzCoefficientPenalty(
                weight=node.LCP_WEIGHT,
                bound=node.LCP_BOUND,
                two_sided=node.LCP_TWO_SIDED,
                reduction=node.LCP_REDUCTION,
                max_samples=samples,
            )
        )
    if node.FROBENIUS_WEIGHT:
        weight = scheduled(node.FROBENIUS_WEIGHT)
        chosen.append(JacobianFrobeniusPenalty(weight=weight, max_samples=samples))
    if node.SPECTRAL_WEIGHT:
        weight = scheduled(node.SPECTRAL_WEIGHT)
        chosen.append(
            SpectralPenalty(
                weight=weight,
                margin=node.SPECTRAL_MARGIN,
                power_steps=node.SPECTRAL_POWER_STEPS,
                max_samples=samples,
            )
        )
    if node.RESIDUAL_WEIGHT:
        weight = scheduled(node.RESIDUAL_WEIGHT)
        chosen.append(ResidualPenalty(weight=weight, max_samples=samples))
    return tuple(chosen)


def output_norm(kind: str, channels: int) -> nn.Module:
    """The norm between the last state and the readout.

    Args:
        kind: `GN` (as many groups as divide the channels, at most 32), `IN` (each sample and
            channel over space), `""` for none, or any other of Detectron2's norms.
        channels: of the state.

    Raises:
        ConfigurationError: an unknown name.
    """
    if kind in ("GN", "IN", ""):
        return state_norm(kind, channels, scale=1.0)
    if kind not in DETECTRON2_NORMS:
        allowed = ", ".join(map(repr, ("", "GN", "IN", *DETECTRON2_NORMS)))
        raise ConfigurationError(
            f"CRBP.OUTPUT_NORM: unknown norm {kind!r}; choose from {allowed}", option="output_norm"
        )
    try:
        norm: nn.Module = get_norm(kind, channels)
    except KeyError as error:
        raise ConfigurationError(
            f"CRBP.OUTPUT_NORM: the installed Detectron2 has no {kind!r}; install it anew from its "
            "main branch, or choose another",
            option="output_norm",
        ) from error
    return norm


@contextmanager
def naming_keys() -> Iterator[None]:
    """Errors about an argument say which key of the configuration it came from."""
    try:
        yield
    except ConfigurationError as error:
        if not error.option:
            raise ConfigurationError(f"CRBP: {error}") from error
        key = KEYS.get(error.option, error.option.upper())
        raise ConfigurationError(f"CRBP.{key}: {error}", option=error.option) from error
