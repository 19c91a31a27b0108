"""The first layer of the contour models."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError
from crbp_d2.core.options import one_of, switch
from crbp_d2.modeling import build

FEATURE = "stem"
"""Name of the stem's feature map."""
NAMED_FILTERS = ("gabor", "random")
"""Starts of the filters that are no file."""
BIASES = ("zero", "uniform", "none")
KEY = "MODEL.BACKBONE.FILTERS"


def gabor_bank(count: int, size: int) -> Tensor:
    """Filters of evenly spaced orientations, in even and odd phase by turns.

    Args:
        count: of filters.
        size: side in pixels; the wave length is the size, and the envelope's standard deviation a
            quarter of it.

    Returns:
        `(count, 1, size, size)`, each of zero mean and unit norm.
    """
    ticks = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    orientations = math.ceil(count / 2)
    filters = []
    for number in range(count):
        angle = math.pi * (number // 2) / orientations
        phase = math.pi / 2 * (number % 2)
        across = x * math.cos(angle) + y * math.sin(angle)
        envelope = torch.exp(-(x.square() + y.square()) / (2 * (size / 4) ** 2))
        wave = envelope * torch.cos(2 * math.pi * across / size + phase)
        wave = wave - wave.mean()
        filters.append(wave / wave.norm())
    return torch.stack(filters)[:, None]


def file_bank(path: str, shape: tuple[int, int, int, int]) -> Tensor:
    """Filters from an array of numpy's, in a file `.npy`; nothing that it holds is run.

    Args:
        path: of the file.
        shape: that they must have, `(count, in_channels, size, size)`.

    Returns:
        float32, of that shape.

    Raises:
        ConfigurationError: there is no such file, or it holds something else.
    """
    place = f"{KEY} {path}"
    words = ", ".join(NAMED_FILTERS)
    cure = f"choose {words} or the path of a file .npy; a trained model needs none"
    try:
        # Mapped, so that an array of another shape takes no memory.
        array = np.load(os.path.expanduser(path), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ConfigurationError(f"{place}: {error.strerror or error}; {cure}") from error
    # What is raised depends on where the file is damaged.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{place}: no array of numbers ({reason}); {cure}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ConfigurationError(f"{place}: no array of numbers; {cure}")
    if array.shape != shape:
        raise ConfigurationError(
            f"{place}: an array of the shape {array.shape}, where the stem has {shape}: "
            "CRBP.CELL.CHANNELS filters, the channels of the image, and twice "
            "MODEL.BACKBONE.KERNEL_SIZE; make them equal"
        )
    filters = torch.from_numpy(array.astype(np.float32))
    if not torch.isfinite(filters).all():
        raise ConfigurationError(f"{place}: it holds NaN or infinite numbers; replace them")
    return filters


@BACKBONE_REGISTRY.register()
class GaborStem(Backbone):
    """One trainable convolution started as a bank of Gabor filters, squared (Linsley et al. 2020,
    supplement, section 3.1).

    Args:
        in_channels: of the image; Gabor filters are the same for each.
        channels: filters, `C`.
        kernel_size: their side, odd.
        filters: what they start as: `gabor` for `gabor_bank`, `random` for the usual start of
            PyTorch's convolutions, or the path of a file, see `file_bank`, as the released code
            has one.
        bias: `zero`, `uniform` in `+-1 / sqrt(in_channels kernel_size^2)`, as in the released code,
            or `none`.
        norm: of the responses, see `crbp_d2.modeling.build.output_norm`.
        squared: give the square of the responses.

    Raises:
        ConfigurationError: an impossible size, an unknown name, or a file that can't be used.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        kernel_size: int = 7,
        filters: str = "gabor",
        bias: str = "zero",
        norm: str = "",
        squared: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigurationError(
                f"MODEL.BACKBONE.KERNEL_SIZE must be a positive odd number, got {kernel_size}"
            )
        self.channels = channels
        self.squared = switch("squared", squared, label="MODEL.BACKBONE.SQUARED")
        one_of("bias", bias, BIASES, label="MODEL.BACKBONE.BIAS")
        self.filters = nn.Conv2d(
            in_channels, channels, kernel_size, padding=kernel_size // 2, bias=bias != "none"
        )
        self.norm = build.output_norm(norm, channels)
        weight = self.filters.weight
        with torch.no_grad():
            if filters == "gabor":
                weight.copy_(gabor_bank(channels, kernel_size) / in_channels)
            elif filters != "random":
                weight.copy_(file_bank(filters, (channels, in_channels, *weight.shape[2:])))
        # Uniform is how PyTorch starts it.
        if bias == "zero" and self.filters.bias is not None:
            nn.init.zeros_(self.filters.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        backbone = cfg.MODEL.BACKBONE
        return {
            "in_channels": input_shape.channels,
            "channels": cfg.CRBP.CELL.CHANNELS,
            "kernel_size": backbone.KERNEL_SIZE,
            "filters": backbone.FILTERS,
            "bias": backbone.BIAS,
            "norm": backbone.NORM,
            "squared": backbone.SQUARED,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """`{"stem": (N, C, H, W)}`, at least 0 if squared, for images `(N, in_channels, H, W)`."""
        responses: Tensor = self.norm(self.filters(image))
        return {FEATURE: responses.square() if self.squared else responses}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride (1) of the feature map."""
        return {FEATURE: ShapeSpec(channels=self.channels, stride=1)}
