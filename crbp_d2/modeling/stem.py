"""The first layer of the contour models."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError

FEATURE = "stem"
"""Name of the stem's feature map."""


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


@BACKBONE_REGISTRY.register()
class GaborStem(Backbone):
    """One trainable convolution started as a bank of Gabor filters, squared (Linsley et al. 2020,
    supplement, section 3.1).

    Args:
        in_channels: of the image; the filters are the same for each.
        channels: filters, `C`.
        kernel_size: their side, odd.

    Raises:
        ConfigurationError: an impossible size.
    """

    @configurable
    def __init__(self, *, in_channels: int, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigurationError(
                f"MODEL.BACKBONE.KERNEL_SIZE must be a positive odd number, got {kernel_size}"
            )
        self.channels = channels
        self.filters = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
        with torch.no_grad():
            self.filters.weight.copy_(gabor_bank(channels, kernel_size) / in_channels)
        bias = self.filters.bias
        assert bias is not None
        nn.init.zeros_(bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "in_channels": input_shape.channels,
            "channels": cfg.CRBP.CELL.CHANNELS,
            "kernel_size": cfg.MODEL.BACKBONE.KERNEL_SIZE,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """`{"stem": (N, C, H, W)}`, at least 0, for images `(N, in_channels, H, W)`."""
        return {FEATURE: self.filters(image).square()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride (1) of the feature map."""
        return {FEATURE: ShapeSpec(channels=self.channels, stride=1)}
