"""From the configuration to a recurrence; `cfg` goes no further."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import nn

from crbp_d2.config.defaults import COMMON, PARTS, options_of
from crbp_d2.config.phases import phases_of
from crbp_d2.core import (
    CELLS,
    PENALTIES,
    ConfigurationError,
    Recurrence,
    WeightSchedule,
    build_recurrence,
    parse_algorithm,
)
from crbp_d2.core.cells.norms import build_norm
from crbp_d2.core.options import number
from crbp_d2.modeling.phases import Phase, Recipe

logger = logging.getLogger(__name__)

KEYS = {
    "algorithm": "ALGORITHM",
    "chunk_samples": "CHUNK_SAMPLES",
    "on_nonfinite": "ON_NONFINITE",
    "compile_steps": "SOLVER.COMPILE",
    "steps": "SOLVER.STEPS",
    "test_steps": "SOLVER.TEST_STEPS",
    "spread": "SOLVER.SPREAD",
    "early_from": "LOSS.EARLY_FROM",
    "penalty.max_samples": "PENALTY.SAMPLES",
    "points": "PENALTY.SCHEDULE",
}
"""Keys of `CRBP` that are not the name of an option in capitals."""

DETECTRON2_NORMS = ("BN", "SyncBN", "FrozenBN", "LN")
"""Norms for the state that is read out, besides those of the cells."""


def recurrence(node: CfgNode, cell: nn.Module | None = None) -> Recurrence:
    """A circuit with the learning algorithm that the keys describe.

    Args:
        node: `cfg.CRBP`, of a phase of training.
        cell: the circuit; `None` for a new one.

    Raises:
        ConfigurationError: an unknown name or an impossible value, naming its key.
    """
    solver = node.SOLVER
    with naming_keys():
        algorithm, penalties = _penalties(node)
        return build_recurrence(
            algorithm,
            _cell(node) if cell is None else cell,
            solver=_options(solver),
            adjoint=_options(node.ADJOINT),
            penalties=penalties,
            steps=solver.STEPS,
            test_steps=solver.TEST_STEPS or None,
            spread=solver.SPREAD,
            compile_steps=solver.COMPILE,
            on_nonfinite=node.ON_NONFINITE,
        )


def head_options(node: CfgNode, iterations: int) -> dict[str, Any]:
    """The arguments that both recurrent heads share.

    Args:
        node: `cfg.CRBP`.
        iterations: of training.

    Raises:
        ConfigurationError: see `recurrence` and `crbp_d2.config.phases_of`.
    """
    *earlier, last = phases_of(node)
    with naming_keys():
        cell = _cell(last.node)
    recipes = [_recipe(phase.node, cell) for phase in (*earlier, last)]
    ends = [round(iterations * phase.begin) for phase in (*earlier[1:], last)]
    final = recipes.pop()
    return {
        **{one.name: getattr(final, one.name) for one in fields(final)},
        "earlier": [Phase(end, recipe) for end, recipe in zip(ends, recipes, strict=False)],
    }


def _recipe(node: CfgNode, cell: nn.Module) -> Recipe:
    loss = node.LOSS
    with naming_keys():
        if not loss.EARLY_WEIGHT >= 0:
            raise ConfigurationError(
                f"must be at least 0, got {loss.EARLY_WEIGHT}", option="loss.early_weight"
            )
        return Recipe(
            recurrence(node, cell),
            chunk_samples=node.CHUNK_SAMPLES or None,
            every_step=loss.EVERY_STEP,
            early_loss_weight=loss.EARLY_WEIGHT,
            early_from=loss.EARLY_FROM if loss.EARLY_WEIGHT else None,
        )


def output_norm(kind: str, channels: int, *, eps: float = 0.0) -> nn.Module:
    """The norm between the last state and the readout.

    Args:
        kind: `GN` (as many groups as divide the channels, at most 32), `IN` (each sample and
            channel over space), `BatchBN` (batch norm by statistics of the batch in evaluation,
            too), `""` for none, or any other of Detectron2's norms.
        channels: of the state.
        eps: added to the variance; 0 for the norm's own, 1e-5 of most.

    Raises:
        ConfigurationError: an unknown name, or an impossible number.
    """
    eps = number("output_norm_eps", eps, least=0, label="OUTPUT_NORM_EPS")
    norm = _norm_of(kind, channels)
    if eps and kind:
        # Most of Detectron2's take it at no other place.
        setattr(norm, "eps", eps)  # noqa: B010  mypy takes a module's attributes for modules
    return norm


def _norm_of(kind: str, channels: int) -> nn.Module:
    if kind in ("GN", "IN", "BatchBN", ""):
        return build_norm(kind, channels, scale=1.0)
    if kind not in DETECTRON2_NORMS:
        allowed = ", ".join(map(repr, ("", "GN", "IN", "BatchBN", *DETECTRON2_NORMS)))
        raise ConfigurationError(
            f"OUTPUT_NORM: unknown norm {kind!r}; choose from {allowed}", option="output_norm"
        )
    try:
        norm: nn.Module = get_norm(kind, channels)
    except KeyError as error:
        raise ConfigurationError(
            f"OUTPUT_NORM: the installed Detectron2 has no {kind!r}; install it anew from its "
            "main branch, or choose another",
            option="output_norm",
        ) from error
    return norm


@contextmanager
def naming_keys() -> Iterator[None]:
    """Errors about an option say which key of the configuration it came from."""
    try:
        yield
    except ConfigurationError as error:
        if str(error).startswith(("CRBP.", "CRBP: ")):
            # Named in a block inside.
            raise
        if not error.option:
            raise ConfigurationError(f"CRBP: {error}") from error
        key = KEYS.get(error.option, error.option.upper())
        # Such a key may come from a base of the config file.
        cure = "; None leaves it out" if "has no option" in str(error) else ""
        if str(error).startswith("unknown ") and error.option.endswith((".name", "algorithm")):
            cure = f". Parts of another package are known once {PARTS} names its module"
        raise ConfigurationError(f"CRBP.{key}: {error}{cure}", option=error.option) from error


def _options(node: CfgNode) -> dict[str, Any]:
    """Those of a part, with its name where that is not left to the algorithm."""
    name = {"name": node.NAME} if node.NAME else {}
    return {**name, **options_of(node, *COMMON)}


def _cell(node: CfgNode) -> nn.Module:
    """The circuit, of the last phase of training: its gates start by the number of its steps."""
    options, name = options_of(node.CELL, *COMMON), node.CELL.NAME
    if "chrono_steps" in CELLS.options(name) and "chrono_steps" not in options:
        # The answer is asked for from the fewest steps on.
        options["chrono_steps"] = max(node.SOLVER.STEPS - node.SOLVER.SPREAD, 0)
    return CELLS.build(name, **options)


def _penalties(node: CfgNode) -> tuple[str, dict[str, dict[str, Any]]]:
    """The algorithm with the penalties that have a weight, and the options of all its penalties."""
    algorithm = node.ALGORITHM
    named = parse_algorithm(algorithm).penalties
    schedule = tuple(node.PENALTY.SCHEDULE)
    if not all(isinstance(point, (tuple, list)) and len(point) == 2 for point in schedule):
        raise ConfigurationError(
            f"must be ((iteration, factor), ...), got {node.PENALTY.SCHEDULE}", option="points"
        )
    if schedule:
        WeightSchedule(schedule)  # a wrong one is refused whether or not a penalty follows it
    found: dict[str, dict[str, Any]] = {}
    for key, value in node.PENALTY.items():
        if not isinstance(value, CfgNode):
            continue
        options, name = options_of(value), key.lower()
        try:
            penalty = PENALTIES.build(name, **options)
        except ConfigurationError as error:
            option = error.option.removeprefix("penalty.")
            raise ConfigurationError(str(error), option=f"penalty.{name}.{option}") from error
        if name not in named:
            # That of the Lipschitz coefficient penalty is there for the algorithms that have it.
            if name == "lcp":
                logger.info("CRBP.PENALTY.LCP is not used: %s has no such penalty", algorithm)
            if name == "lcp" or not options.get("weight"):
                continue
            algorithm += f"+{name}"
        if schedule and name != "lcp":
            options["weight"] = WeightSchedule(tuple((i, penalty.weight * f) for i, f in schedule))
        found[name] = {**options, "max_samples": node.PENALTY.SAMPLES or None}
    return algorithm, found
