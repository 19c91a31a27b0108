"""Convolutional LSTM, the rival cell of the Pathfinder study."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbp_d2.core.cells.base import CELLS
from crbp_d2.core.options import integer, number, odd, one_of
from crbp_d2.core.state import zero_state

STARTS = ("orthogonal", "uniform")


@CELLS.register("conv_lstm")
class ConvLSTMCell(nn.Module):
    """Convolutional LSTM (Shi et al. 2015) without peepholes; its state is the pair `(h, c)`.

        i, f, o, g = W_x * x + W_h * h + b
        c' = sigmoid(f) . c + sigmoid(i) . tanh(g)
        h' = sigmoid(o) . tanh(c')

    Args:
        channels: `C` of drive and of both parts of the state.
        kernel_size: `E` of both convolutions, odd; as the hGRU's in the paper.
        forget_bias: initial bias of the forget gate; 1 lets the memory last at first (Jozefowicz et
            al. 2015).
        start: of the kernels: `orthogonal`, with biases of 0 beside the forget gate's; or `uniform`
            in `+-1 / sqrt(C E^2)`, kernels and biases, `forget_bias` left out, as PyTorch's
            convolutions start and the released ones do.

    Raises:
        ConfigurationError: an unknown name or an impossible number.
    """

    def __init__(
        self,
        *,
        channels: int,
        kernel_size: int = 15,
        forget_bias: float = 1.0,
        start: str = "orthogonal",
    ) -> None:
        super().__init__()
        size, channels = odd("kernel_size", kernel_size), integer("channels", channels, 1)
        self.channels = channels
        self.from_drive = nn.Conv2d(channels, 4 * channels, size, padding=size // 2)
        self.from_state = nn.Conv2d(channels, 4 * channels, size, padding=size // 2, bias=False)
        forget_bias = number("forget_bias", forget_bias)
        if one_of("start", start, STARTS) == "orthogonal":
            self._start_orthogonal(forget_bias)

    def _start_orthogonal(self, forget_bias: float) -> None:
        for kernel in (self.from_drive, self.from_state):
            nn.init.orthogonal_(kernel.weight)
        bias = self.from_drive.bias
        assert bias is not None
        nn.init.zeros_(bias)
        nn.init.constant_(bias[self.channels : 2 * self.channels], forget_bias)

    def initial_state(self, drive: Tensor) -> tuple[Tensor, Tensor]:
        """`(h, c)` of zeros for a drive `(N, C, H, W)`; float32 under autocast."""
        zeros = zero_state(drive)
        return zeros, zeros.clone()

    def forward(self, drive: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The next `(h, c)`, both `(N, C, H, W)`; `h` lies in (-1, 1)."""
        hidden, memory = state
        joint = self.from_drive(drive) + self.from_state(hidden)
        entry, forget, exit_, candidate = joint.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(entry) * torch.tanh(candidate)
        return torch.sigmoid(exit_) * torch.tanh(memory), memory
