"""Optimizers by their names, and whether the state of one can be taken over by another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_detectron2s
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch.optim import Optimizer

from crbp_d2.core import ConfigurationError

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""Beside Detectron2's own SGD."""

_KEYS = {
    "initial_lr": "SOLVER.BASE_LR",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "momentum": "SOLVER.MOMENTUM",
    "nesterov": "SOLVER.NESTEROV",
}


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> Optimizer:
    """The optimizer that `SOLVER.OPTIMIZER` names, with rates, decays and clipping of SOLVER.

    Besides Detectron2's ways of clipping `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may be `full_model`,
    which bounds the norm of all gradients together. With a `SOLVER.PRETRAINED_FACTOR` every weight
    is a group of its own: which are pretrained is known once they are loaded, see `slow_down`, and
    a resumed training takes the rates of its checkpoint.

    Raises:
        ConfigurationError: an unknown name or an impossible value.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    together = clipping.ENABLED and clipping.CLIP_TYPE == "full_model"
    if together:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    try:
        optimizer = _build(cfg, model)
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(f"SOLVER: {error}") from error
    if cfg.SOLVER.PRETRAINED_FACTOR != 1:
        optimizer.param_groups = [
            {**group, "params": [weight]}
            for group in optimizer.param_groups
            for weight in group["params"]
        ]
    if together:

        def clip(stepping: Optimizer, *_: Any) -> None:
            weights = [weight for group in stepping.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, clipping.CLIP_VALUE, clipping.NORM_TYPE)

        optimizer.register_step_pre_hook(clip)
    return optimizer


def _build(cfg: CfgNode, model: torch.nn.Module) -> Optimizer:
    optimizer: Optimizer
    if cfg.SOLVER.OPTIMIZER == "sgd":
        optimizer = build_detectron2s(cfg, model)
        return optimizer
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        allowed = ", ".join(sorted([*OPTIMIZERS, "sgd"]))
        raise ConfigurationError(
            f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; choose from {allowed}"
        )
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    kind = maybe_add_gradient_clipping(cfg, OPTIMIZERS[cfg.SOLVER.OPTIMIZER])
    optimizer = kind(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    return optimizer


def slow_down(
    optimizer: Optimizer, scheduler: Any, weights: Iterable[torch.nn.Parameter], factor: float
) -> int:
    """Multiply the learning rates of some weights, for the whole training.

    Args:
        optimizer: of which each of them is a group of its own.
        scheduler: of its rates.
        weights: those to learn slower; others than the optimizer's are left out.
        factor: of their rates.

    Returns:
        How many they are.
    """
    chosen = {id(weight) for weight in weights}
    found = [
        number
        for number, group in enumerate(optimizer.param_groups)
        if id(group["params"][0]) in chosen
    ]
    for number in found:
        for key in ("lr", "initial_lr"):
            optimizer.param_groups[number][key] *= factor
        scheduler.base_lrs[number] *= factor
    return len(found)


def require_same_kind(state: dict[str, Any], optimizer: Optimizer) -> None:
    """Refuse the state of another kind of optimizer, or of one with other groups of weights.

    Args:
        state: as `state_dict()` gives it.
        optimizer: to take it over.

    Raises:
        ConfigurationError: naming the keys to change.
    """
    own = optimizer.state_dict()
    stored, wanted = _kinds(state), _kinds(own)
    if not stored & wanted:
        raise ConfigurationError(
            f"SOLVER.OPTIMIZER is {' or '.join(sorted(wanted))}, but the checkpoint was written "
            f"with {' or '.join(sorted(stored))}: resume with that one, or start from its weights, "
            "without --resume and with MODEL.WEIGHTS, in another OUTPUT_DIR"
        )
    sizes = [[len(group["params"]) for group in some["param_groups"]] for some in (state, own)]
    if sizes[0] != sizes[1]:
        raise ConfigurationError(
            "the checkpoint was written with other groups of weights: restore "
            "SOLVER.WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and PRETRAINED_FACTOR, "
            "and what is frozen"
        )


def kept_settings(state: dict[str, Any], optimizer: Optimizer, factor: float = 1.0) -> list[str]:
    """What a resumed optimizer keeps, in spite of the config: `KEY value` for each setting.

    Args:
        state: of the checkpoint.
        optimizer: to take it over, as it is built: with the whole rate for pretrained weights.
        factor: of the rates of pretrained weights; which they are the state alone knows.
    """
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    kept = [
        f"{key} {stored[name]}"
        for stored, wanted in pairs
        for name, key in _KEYS.items()
        if name in stored and stored[name] not in _expected(name, wanted, factor)
    ]
    return list(dict.fromkeys(kept))


def _expected(name: str, group: dict[str, Any], factor: float) -> tuple[Any, ...]:
    """The values that a setting of a group can have in a checkpoint of the same config."""
    value = group.get(name)
    return (value, value * factor) if name == "initial_lr" and value is not None else (value,)


def _kinds(state: dict[str, Any]) -> set[str]:
    """Names of the optimizers that a state may be of."""
    group = state["param_groups"][0]
    if "betas" not in group:
        return {"sgd"}
    decoupled = group.get("decoupled_weight_decay")
    # Older versions of PyTorch don't say.
    return {"adam", "adamw"} if decoupled is None else {"adamw" if decoupled else "adam"}
