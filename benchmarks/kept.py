"""Tensors that take long to make, kept in a file for the next call."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_whole
from crbp_d2.weights.reading import UnreadableError, read_checkpoint

logger = logging.getLogger(__name__)


def kept(
    folder: Path,
    name: str,
    settings: Any,
    make: Callable[[], dict[str, Any]],
    require: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """What `make()` returns, read from the folder if it was made of the same settings before.

    Args:
        folder: of the file, `NAME_DIGEST.pt`.
        name: of what it holds.
        settings: all that it depends on, as JSON can say it.
        make: tensors by name in `model`, and numbers beside it. Called where the file can't be
            used, too, which is told.
        require: raises an `UnreadableError` of what the file holds, if it has another form than
            what is made.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{name}_{digest}.pt"
    if os.path.lexists(path):
        try:
            found = read_checkpoint(str(path))
            require(found)
        except ConfigurationError as error:
            logger.warning("%s can't be used (%s): it is made anew", path, error)
        else:
            return found
    made = make()
    content = io.BytesIO()
    torch.save(made, content)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
    return made


def require_trained(module: nn.Module, costs: Sequence[str], found: dict[str, Any]) -> None:
    """Refuse what is not a trained module of an architecture, with what its training cost.

    Args:
        module: of the architecture.
        costs: names of numbers of at least 0.
        found: as `kept` reads it.

    Raises:
        UnreadableError: naming what is wrong.
    """
    own = module.state_dict()
    require_tensors(found["model"], {name: _like(value) for name, value in own.items()})
    for name in costs:
        value = found.get(name)
        if not isinstance(value, (float, int)) or not 0 <= value < math.inf:
            raise UnreadableError(f"{name} is {value!r}, no number of at least 0")


def require_tensors(found: dict[str, Any], forms: dict[str, tuple[torch.dtype, Any]]) -> None:
    """Refuse other tensors than those of these names, types and shapes, or NaN in them.

    Raises:
        UnreadableError: naming the first that is wrong.
    """
    for name in sorted(found.keys() ^ forms.keys()):
        raise UnreadableError(f"{'has' if name in found else 'lacks'} {name}")
    for name, (kind, shape) in forms.items():
        value = found[name]
        if not isinstance(value, Tensor) or (value.dtype, tuple(value.shape)) != (kind, shape):
            of = str(kind).removeprefix("torch.")
            raise UnreadableError(f"{name} is no tensor of the type {of} and the shape {shape}")
        if not bool(torch.isfinite(value).all()):
            raise UnreadableError(f"{name} holds NaN or infinity")


def _like(value: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return value.dtype, tuple(value.shape)
