"""Gates, and the biases that they start with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.ops.activations import activation
from crbp_d2.core.options import integer

GATE_BIASES = ("chrono", "released", "zero")


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
    steps = integer("chrono_steps", steps, 0)
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
        local  = V2 * phi(V1 * H + c1)  ExE C -> C/2, ExE C/2 -> 1
        gate   = sigmoid(global . local + b)

    Args:
        channels: of the state, at least 4.
        activation_name: `phi`.
        kernel_size: `E`, odd; 3 in the published model.
        uniform_bias: start `b1` uniform in `+-1 / sqrt(C)`, as in the released code, and not at 0.
    """

    def __init__(
        self,
        *,
        channels: int,
        activation_name: str,
        kernel_size: int = 3,
        uniform_bias: bool = False,
    ) -> None:
        super().__init__()
        if channels < 4:
            raise ConfigurationError(
                f"the gala gate needs at least 4 channels, got {channels}", option="channels"
            )
        self.activation = activation(activation_name)
        self.global_in = nn.Conv2d(channels, channels // 4, 1)
        self.global_out = nn.Conv2d(channels // 4, channels, 1, bias=False)
        around = kernel_size // 2
        self.local_in = nn.Conv2d(channels, channels // 2, kernel_size, padding=around)
        self.local_out = nn.Conv2d(channels // 2, 1, kernel_size, padding=around, bias=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        for layer in (self.global_in, self.global_out, self.local_in, self.local_out):
            nn.init.kaiming_normal_(layer.weight)
            # Uniform is how PyTorch starts it.
            if layer.bias is not None and not (uniform_bias and layer is self.global_in):
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
