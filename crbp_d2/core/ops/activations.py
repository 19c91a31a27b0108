"""Elementwise functions of the cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.graphs import is_exporting
from crbp_d2.core.state import at_least_float32


class _Softplus(torch.autograd.Function):
    """`softplus` for the CPU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        exact = at_least_float32(x)
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
    # A graph can hold the operations, but not a function of Python's.
    result: Tensor = _Softplus.forward(x) if is_exporting() else _Softplus.apply(x)
    return result


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "softplus": softplus,
    "tanh": torch.tanh,
}


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
