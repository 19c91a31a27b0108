"""Pieces that the cells share: activations, norms, gates, kernels and initial values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.state import wide


class _Softplus(torch.autograd.Function):
    """`softplus` for the CPU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        exact = wide(x)
        small = exact.abs().neg_().exp_()
        one_more = small + 1
        result = one_more.log()
        lost = small.sub_(one_more - 1).div_(one_more)
        return result.add_(lost).add_(exact.clamp(min=0)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(x)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, exact to the last digits; `torch.nn.functional.softplus` cuts off at 20.

    That one is slow on a CPU, compiled or not: its `log1p` takes a quarter of the time of a small
    circuit. There, `max(x, 0) + log(1 + y)` with `y = exp(-|x|)`, and the digits that `1 + y` loses
    put back, takes a third of the time. Half precision is computed in float32 and rounded once.

    Args:
        x: of any shape.

    Returns:
        A tensor like `x`, at least 0, differentiable any number of times.
    """
    if x.device.type != "cpu":
        return F.softplus(x)
    result: Tensor = _Softplus.apply(x)
    return result


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "softplus": softplus,
    "tanh": torch.tanh,
}
NORMS = ("", "BN", "GN", "IN")
GATE_BIASES = ("chrono", "released", "zero")
GROUPS = 32


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The elementwise function of a name.

    Raises:
        ConfigurationError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ConfigurationError(
            f"unknown activation {name!r}; choose from {choices(ACTIVATIONS)}",
            option="activation_name",
        )
    return ACTIVATIONS[name]


def odd_kernel(size: int) -> int:
    """A kernel size that keeps the shape of a state.

    Raises:
        ConfigurationError: not a positive odd number.
    """
    if size < 1 or size % 2 == 0:
        raise ConfigurationError(
            f"kernel_size must be a positive odd number, got {size}", option="kernel_size"
        )
    return size


class StateBatchNorm2d(nn.BatchNorm2d):
    """Batch norm inside a cell: one set of parameters and statistics for all steps.

    In training it normalises by the statistics of the batch at that step. Its running statistics
    follow only the steps that are recorded, for equilibrium estimators the last one: those of the
    state that is read out, and not a mixture with the steps before. A step that is recorded once
    more, for a penalty, an early loss or a checkpoint, leaves them alone. In evaluation it uses
    them, so that a sample's prediction does not depend on the others of its batch (the released
    code uses batch statistics there, too).
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


@contextmanager
def statistics_kept(cell: object) -> Iterator[None]:
    """Within the block the batch norms of a cell leave their running statistics as they are."""
    modules = cell.modules() if isinstance(cell, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, StateBatchNorm2d)]
    for norm in norms:
        norm.keeps_statistics = True
    try:
        yield
    finally:
        for norm in norms:
            norm.keeps_statistics = False


def state_norm(kind: str, channels: int, *, scale: float) -> nn.Module:
    """A norm for the state of a cell.

    Args:
        kind: `GN` group norm of 32 groups (or fewer: the greatest common divisor with the
            channels), `BN` see `StateBatchNorm2d`, `IN` instance norm (each sample and channel over
            space, with scale and shift), or `""` for none.
        channels: of the state.
        scale: initial value of the learned scale. The shift starts at 0.

    Raises:
        ConfigurationError: unknown kind. Synchronised batch norm is not offered, as it has no
            double backward, which the penalties need.
    """
    if kind not in NORMS:
        raise ConfigurationError(
            f"unknown norm {kind!r} inside a cell; choose from {', '.join(map(repr, NORMS))}",
            option="norm",
        )
    if kind == "":
        return nn.Identity()
    norm: nn.GroupNorm | nn.BatchNorm2d
    if kind == "BN":
        norm = StateBatchNorm2d(channels)
    else:
        groups = channels if kind == "IN" else math.gcd(GROUPS, channels)
        norm = nn.GroupNorm(groups, channels)
    nn.init.constant_(norm.weight, scale)
    return norm


def initialise_gate_biases(
    suppression: Tensor, recurrent: Tensor, *, kind: str, steps: int
) -> None:
    """Biases of the two gates, in place: `b` for the suppression gate, `-b` for the recurrent gate.

    `chrono` (Tallec & Ollivier 2018): `b = log U(1, T-1)`, so that the state moves on time scales
    from one step to `T`. `released`: `b = U(1, T-1)`, as in the released code, which computes the
    logarithm and throws it away; the recurrent gates then hardly open. `zero`: half-open gates,
    with which the state moves fast and settles soon.

    Args:
        suppression: bias to fill, `(C,)`.
        recurrent: bias to fill, `(C,)`.
        kind: see above.
        steps: `T`; up to 2 it gives biases of 0 (`chrono`) or 1 (`released`).

    Raises:
        ConfigurationError: unknown kind.
    """
    if kind not in GATE_BIASES:
        raise ConfigurationError(
            f"unknown gate_bias {kind!r}; choose from {choices(GATE_BIASES)}", option="gate_bias"
        )
    with torch.no_grad():
        suppression.uniform_(1, max(steps - 1, 1))
        if kind == "chrono":
            suppression.log_()
        elif kind == "zero":
            suppression.zero_()
        recurrent.copy_(-suppression)


class GlobalLocalGate(nn.Module):
    """GALA, global-and-local attention (Linsley et al. 2019), as the suppression gate of the mask
    head.

        global = U2 phi(U1 H + b1)      1x1 C -> C/4, 1x1 C/4 -> C
        local  = V2 * phi(V1 * H + c1)  3x3 C -> C/2, 3x3 C/2 -> 1
        gate   = sigmoid(global . local + b)

    Args:
        channels: of the state, at least 4.
        activation_name: `phi`.
    """

    def __init__(self, *, channels: int, activation_name: str) -> None:
        super().__init__()
        if channels < 4:
            raise ConfigurationError(
                f"the gala gate needs at least 4 channels, got {channels}", option="channels"
            )
        self.activation = activation(activation_name)
        self.global_in = nn.Conv2d(channels, channels // 4, 1)
        self.global_out = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.local_in = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.local_out = nn.Conv2d(channels // 2, 1, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        for layer in (self.global_in, self.global_out, self.local_in, self.local_out):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor) -> Tensor:
        """Gate values in (0, 1), `(N, C, H, W)`, for a state of the same shape."""
        overall = self.global_out(self.activation(self.global_in(state)))
        local = self.local_out(self.activation(self.local_in(state)))
        return torch.sigmoid(overall * local + self.bias.reshape(-1, 1, 1))


class PointwiseGate(nn.Module):
    """The plain gate `sigmoid(U * H + b)` with a 1x1 convolution.

    Args:
        channels: of the state.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 1)

    @property
    def bias(self) -> Tensor:
        """`b: (C,)`."""
        bias = self.convolution.bias
        assert bias is not None
        return bias

    def forward(self, state: Tensor) -> Tensor:
        """Gate values in (0, 1), `(N, C, H, W)`, for a state of the same shape."""
        return torch.sigmoid(self.convolution(state))
