"""The state of a training in a checkpoint, looked at before the training goes on with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from crbp_d2.weights import UnreadableError

LARGEST = 1e18
"""Of numbers: a step computes with their products."""
_FLAGS = ("amsgrad", "capturable", "differentiable", "foreach", "fused", "maximize")
"""Of optimizers. Older versions of PyTorch lack some; none is set here."""
_OPTIONAL = ("decoupled_weight_decay", *_FLAGS)
_OF_ADAM = ("exp_avg", "exp_avg_sq", "step")


class StateError(UnreadableError):
    """A checkpoint whose state of the training is none; its file is to be named beside."""


def require_same_form(stored: Any, own: Any, place: str) -> None:
    """Refuse values that are not of the form of a training's own: numbers of at least 0, truth
    values, lists of as many and mappings with the same names.

    Args:
        stored: of a checkpoint.
        own: of a training that begins.
        place: what to call it.

    Raises:
        StateError: naming the first that is not.
    """
    if isinstance(own, Mapping):
        lacking = own.keys() - (stored.keys() if isinstance(stored, Mapping) else set())
        if lacking:
            raise StateError(f"{place} lacks {', '.join(sorted(lacking))}")
        for name, value in own.items():
            require_same_form(stored[name], value, f"{place}.{name}")
    elif isinstance(own, (list, tuple)):
        if not isinstance(stored, (list, tuple)) or len(stored) != len(own):
            raise StateError(f"{place} must have {len(own)} values")
        for number, value in enumerate(own):
            require_same_form(stored[number], value, f"{place}[{number}]")
    elif isinstance(own, bool):
        if not isinstance(stored, bool):
            raise StateError(f"{place} must be True or False")
    elif isinstance(own, (float, int)):
        _require_number(stored, place, whole=isinstance(own, int))


def require_sound(state: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse the state of an optimizer that fails by it in its next step.

    Args:
        state: as `state_dict()` gives it, of an optimizer of the same kind and the same groups.
        optimizer: to take it over.

    Raises:
        StateError: naming the first value that can't be.
    """
    for number, (stored, own) in enumerate(
        zip(state["param_groups"], optimizer.param_groups, strict=True)
    ):
        place = f"optimizer.param_groups[{number}]"
        given = {
            name: value
            for name, value in own.items()
            if name != "params" and (name in stored or name not in _OPTIONAL)
        }
        require_same_form(stored, given, place)
        for name in _FLAGS:
            if name in given and stored[name] is not own[name]:
                raise StateError(f"{place}.{name} must be {own[name]}")
        for beta in stored.get("betas", ()):
            if beta >= 1:
                raise StateError(f"{place}.betas must be below 1")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    needed = _OF_ADAM if "betas" in optimizer.param_groups[0] else ()
    _require_sound_of_weights(state["state"], weights, needed)


def _require_sound_of_weights(
    stored: Mapping[int, Any], weights: Sequence[Tensor], needed: Sequence[str]
) -> None:
    for number, weight in enumerate(weights):
        place = f"optimizer.state[{number}]"
        # Of a weight without a gradient there is none.
        entry = stored.get(number, {})
        if not isinstance(entry, Mapping) or (entry and set(needed) - entry.keys()):
            raise StateError(f"{place} lacks {', '.join(needed) or 'names'}")
        for name, value in entry.items():
            if name == "step":
                _require_number(value, f"{place}.step")
            elif value is not None or name in needed:
                _require_like(value, weight, f"{place}.{name}")


def _require_like(value: Any, weight: Tensor, place: str) -> None:
    fits = (
        isinstance(value, Tensor)
        and value.shape == weight.shape
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
    )
    if not fits:
        raise StateError(f"{place} must be numbers of the shape {tuple(weight.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise StateError(f"{place} holds NaN or infinity")


def _require_number(value: Any, place: str, *, whole: bool = False) -> None:
    if isinstance(value, Tensor) and not value.is_meta and value.numel() == 1:
        value = None if whole or value.is_sparse else value.item()
    kinds = (int,) if whole else (float, int)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= LARGEST:
        raise StateError(f"{place} must be a {'whole ' * whole}number of at least 0")
