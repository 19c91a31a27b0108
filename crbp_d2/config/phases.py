"""Phases of training: the node `CRBP` as each of them has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from crbp_d2.config.defaults import COMMON, options_of
from crbp_d2.core import ConfigurationError, did_you_mean

BEGIN = "FROM"
_CHANGEABLE = ("ALGORITHM", "CHUNK_SAMPLES", "SOLVER", "ADJOINT", "PENALTY", "LOSS")
_OF_ALL = ("PENALTY.SCHEDULE",)


@dataclass(frozen=True)
class NodePhase:
    """A part of training.

    Attributes:
        begin: fraction of training at which it begins, in `[0, 1)`.
        node: `cfg.CRBP` as it has it, without `PHASES`.
    """

    begin: float
    node: CfgNode


def phases_of(node: CfgNode) -> list[NodePhase]:
    """The phases of a training, ascending; the first begins at 0, and the last is that of the model
    that the training leaves. Without `PHASES` there is one.

    A phase has what the one before it has, but for the keys that it names. One that names an
    `ALGORITHM` begins with the solver and the adjoint of that algorithm.

    Args:
        node: `cfg.CRBP`; unchanged.

    Raises:
        ConfigurationError: an entry of `PHASES` has another form, or an unknown key or value.
    """
    current = node.clone()
    current.defrost()
    entries, current.PHASES = current.PHASES, ()
    found = [NodePhase(0.0, current)]
    for number, entry in enumerate(entries):
        place = f"CRBP.PHASES, phase {number + 1}"
        if not isinstance(entry, Mapping):
            raise ConfigurationError(
                f"{place}: must be keys with values, such as {{{BEGIN}: 0.5, ALGORITHM: crbp}}, "
                f"got {entry!r}",
                option="phases",
            )
        begin = _begin(entry, place, after=found[-1].begin)
        changes = {key: value for key, value in entry.items() if key != BEGIN}
        current = current.clone()
        if "ALGORITHM" in changes:
            _forget_parts(current)
        _merge(current, changes, place)
        found.append(NodePhase(begin, current))
    return found


def final_node(node: CfgNode) -> CfgNode:
    """`cfg.CRBP` of the model that a training leaves, see `phases_of`."""
    return phases_of(node)[-1].node


def _begin(entry: Mapping[str, Any], place: str, *, after: float) -> float:
    begin = entry.get(BEGIN)
    if isinstance(begin, bool) or not isinstance(begin, (int, float)) or not after < begin < 1:
        raise ConfigurationError(
            f"{place}: {BEGIN} is the fraction of training at which it begins, above {after:g} and "
            f"below 1, got {begin!r}",
            option="phases",
        )
    return float(begin)


def _forget_parts(node: CfgNode) -> None:
    for part in (node.SOLVER, node.ADJOINT):
        part.NAME = ""
        for option in options_of(part, *COMMON):
            part[option.upper()] = None


def _merge(node: CfgNode, changes: Mapping[str, Any], place: str, prefix: str = "") -> None:
    known = list(node) if prefix else list(_CHANGEABLE)
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if name in _OF_ALL:
            raise ConfigurationError(
                f"{place}: {name} counts iterations of the whole training; set CRBP.{name}",
                option="phases",
            )
        if key not in known:
            meant = did_you_mean(str(key), known) or f"it may set {', '.join(known)}"
            raise ConfigurationError(f"{place}: unknown key {name}; {meant}", option="phases")
        if not isinstance(node[key], CfgNode):
            _set(node, key, value, f"{place}: {name}")
        elif isinstance(value, Mapping):
            _merge(node[key], value, place, f"{name}.")
        else:
            raise ConfigurationError(
                f"{place}: {name} is a group of keys; give values to single ones of them",
                option="phases",
            )


def _set(node: CfgNode, key: str, value: Any, place: str) -> None:
    try:
        node.merge_from_list([key, value])
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigurationError(f"{place}: {error}", option="phases") from error
