"""Norms inside a cell, and what their batch statistics forbid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.options import integer, number

NORMS = ("", "BN", "GN", "IN", "BatchBN")
GROUPS = 32
EPS = 1e-5


class StateBatchNorm2d(nn.BatchNorm2d):
    """Batch norm inside a cell: one set of parameters and statistics for all steps.

    In training it normalises by the statistics of the batch at that step. Its running statistics
    follow only the steps that are recorded, for equilibrium estimators the last one: those of the
    state that is read out, and not a mixture with the steps before. A step that is recorded once
    more, for a penalty, an early loss or a checkpoint, leaves them alone. In evaluation it uses
    them, so that a sample's prediction does not depend on the others of its batch. Without any
    (`track_running_stats=False`) it uses those of the batch there, too, as the released code does.
    """

    keeps_statistics = False

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if torch.is_grad_enabled() and not self.keeps_statistics:
            return super().forward(input)
        # Copies are updated in place of the statistics: a checkpoint's second run must save for the
        # backward pass what its first one did.
        mean, variance = (
            s if s is None else s.clone() for s in (self.running_mean, self.running_var)
        )
        return F.batch_norm(input, mean, variance, self.weight, self.bias, True, 0.0, self.eps)


Buffers: TypeAlias = list[tuple[Tensor, Tensor]]
"""The buffers of a cell, and what they held."""


def buffers_of(cell: object) -> Buffers:
    """What the buffers of a cell hold now."""
    found = cell.buffers() if isinstance(cell, nn.Module) else ()
    return [(buffer, buffer.clone()) for buffer in found]


@contextmanager
def step_again(cell: object, buffers: Buffers | None = None) -> Iterator[None]:
    """Within the block a step is computed that has been before, or counts for nothing else: it
    leaves buffers as they are, running statistics of a norm or the vectors of a spectral norm.

    Args:
        cell: that is run.
        buffers: what they held when the step was computed first; they hold it within the block.
    """
    modules = cell.modules() if isinstance(cell, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, StateBatchNorm2d)]
    now = buffers_of(cell)
    # By `data`, as a graph may have saved a buffer, with these values.
    for buffer, value in buffers or ():
        buffer.data.copy_(value)
    for norm in norms:
        norm.keeps_statistics = True
    try:
        yield
    finally:
        for norm in norms:
            norm.keeps_statistics = False
        for buffer, value in now:
            buffer.data.copy_(value)


def build_norm(
    kind: str, channels: int, *, scale: float, groups: int = GROUPS, eps: float = EPS
) -> nn.Module:
    """A norm inside a cell, or of its state.

    Args:
        kind: `GN` group norm, `BN` see `StateBatchNorm2d`, `BatchBN` the same by statistics of the
            batch in evaluation, too, `IN` instance norm (each sample and channel over space, with
            scale and shift), or `""` for none.
        channels: of the state.
        scale: initial value of the learned scale. The shift starts at 0.
        groups: of `GN`; or fewer, the greatest common divisor with the channels.
        eps: added to the variance, above 0.

    Raises:
        ConfigurationError: unknown kind. Synchronised batch norm is not offered, as it has no
            double backward, which the penalties need.
    """
    if kind not in NORMS:
        raise ConfigurationError(
            f"unknown norm {kind!r} inside a cell; choose from {', '.join(map(repr, NORMS))}",
            option="norm",
        )
    scale, eps = number("norm_scale", scale), number("norm_eps", eps, above=0)
    if kind == "":
        return nn.Identity()
    norm: nn.GroupNorm | nn.BatchNorm2d
    if kind in ("BN", "BatchBN"):
        norm = StateBatchNorm2d(channels, eps=eps, track_running_stats=kind == "BN")
    else:
        groups = channels if kind == "IN" else math.gcd(groups, channels)
        norm = nn.GroupNorm(groups, channels, eps=eps)
    nn.init.constant_(norm.weight, scale)
    return norm


def settling_norm(groups: int, channels: int, *, scale: float) -> nn.GroupNorm | None:
    """The norm that lets a gated circuit settle, of the sum of its drive and its new state:

        H' = norm(Z + (1 - G^F) . H + G^F . H~)

    Implicit models end with it (MDEQ, Bai et al. 2020; IFR, 2112.04709). Without it a unit that the
    task leaves alone keeps its state for as long as its gate is shut: the gain of the step is 1.
    The norm divides by the spread of `Z + H`, which is larger than that of `H` alone, so that such
    a unit comes back smaller, by about `scale * spread(H) / spread(Z + H)`. The scale is learned:
    this is a strong habit and no proof, and a penalty can be added. A norm of the state without the
    drive does not do it.

    Args:
        groups: of the group norm, or fewer: the greatest common divisor with the channels. 0 for
            none, the published equations.
        channels: of the state.
        scale: initial value of the learned scale.

    Raises:
        ConfigurationError: an impossible number.
    """
    groups, scale = integer("state_norm", groups, 0), number("state_norm_scale", scale)
    if groups == 0:
        return None
    norm = nn.GroupNorm(math.gcd(groups, channels), channels)
    nn.init.constant_(norm.weight, scale)
    return norm


def refuse_coupled_samples(cell: nn.Module, what: str) -> None:
    """A batch that is computed in parts must not be normalised as a whole.

    Args:
        cell: the circuit.
        what: takes the batch apart, for the message.

    Raises:
        ConfigurationError: the cell uses batch statistics at present.
    """
    coupled = [
        name
        for name, module in cell.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or not module.track_running_stats)
    ]
    if coupled:
        raise ConfigurationError(
            f"{what}, which changes the batch statistics of {choices(coupled)}; leave it out, or "
            "use another norm"
        )
