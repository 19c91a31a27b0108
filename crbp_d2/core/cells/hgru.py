"""The hGRU of the Pathfinder models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbp_d2.core.cells.base import CELLS
from crbp_d2.core.cells.gates import PointwiseGate, initialise_gate_biases
from crbp_d2.core.cells.norms import EPS, build_norm, settling_norm
from crbp_d2.core.ops.activations import softplus
from crbp_d2.core.ops.fft_convolution import LongRangeConv2d
from crbp_d2.core.options import integer, switch


@CELLS.register("hgru")
class HGRUCell(nn.Module):
    """Horizontal gated recurrent unit: suppression, then facilitation, over long-range kernels.

    Supplement of Linsley et al. 2020, section 3.1 (`Z` drive, `H` state, `*` convolution, `.`
    elementwise, `[.]+` softplus):

        G^S = sigmoid(U^S * H)                          suppression gate
        C^S = norm(W^S * (H . G^S))                     suppression
        S   = [Z - [(alpha H + mu) . C^S]+]+
        G^F = sigmoid(U^F * S)                          recurrent gate
        C^F = norm(W^F * S)                             facilitation
        H~  = [nu (C^F + S) + omega (C^F . S)]+
        H'  = (1 - G^F) . H + G^F . H~

    The released code has two parameters in the place of the one `nu`, `kappa` of `S` and `gamma` of
    `C^F`: `H~ = [kappa S + gamma C^F + omega (C^F . S)]+`.

    Args:
        channels: `C` of drive and state.
        kernel_size: `E`, odd; the paper's 15, and 3, 5, 9 in its study of parameter efficiency.
        norm: see `build_norm`; `BN` is the paper's. The norm's parameters are shared over steps.
        norm_scale: initial scale of the norms. The released code starts at 0.1, from which small
            models hardly learn; 1 is the usual start.
        norm_eps: added to the variance in the norms (released: 1e-3).
        rectify_state: put the new state through a softplus as well, as the released cell does and
            the paper's equations do not.
        own_gamma: give `C^F` a parameter `gamma` of its own, as released, which starts at 1; `nu`
            is then `kappa`.
        gate_bias: `chrono` (the paper's intent), `released` or `zero`; see
            `initialise_gate_biases`.
        chrono_steps: `T` of the chrono initialisation.
        convolution: how `W^S` and `W^F` are convolved, `direct`, `fft`, or `auto` for the faster
            one; see `LongRangeConv2d`.
        state_norm: groups of a norm of the sum of drive and new state, which lets the circuit
            settle, as a last step `H' <- norm(Z + H')`; see `settling_norm`. 0, the published
            equations, for none.
        state_norm_scale: initial scale of that norm.

    Raises:
        ConfigurationError: an unknown name or an impossible size.
    """

    def __init__(
        self,
        *,
        channels: int,
        kernel_size: int = 15,
        norm: str = "BN",
        norm_scale: float = 1.0,
        norm_eps: float = EPS,
        rectify_state: bool = False,
        own_gamma: bool = False,
        gate_bias: str = "chrono",
        chrono_steps: int = 20,
        convolution: str = "auto",
        state_norm: int = 0,
        state_norm_scale: float = 1.0,
    ) -> None:
        super().__init__()
        channels = integer("channels", channels, 1)
        self.rectify_state = switch("rectify_state", rectify_state)
        self.suppression_gate = PointwiseGate(channels=channels)
        self.suppression = LongRangeConv2d(channels, channels, kernel_size, method=convolution)
        self.suppression_norm = build_norm(norm, channels, scale=norm_scale, eps=norm_eps)
        self.recurrent_gate = PointwiseGate(channels=channels)
        self.facilitation = LongRangeConv2d(channels, channels, kernel_size, method=convolution)
        self.facilitation_norm = build_norm(norm, channels, scale=norm_scale, eps=norm_eps)
        self.last_norm = settling_norm(state_norm, channels, scale=state_norm_scale)
        self.alpha = nn.Parameter(torch.full((channels, 1, 1), 0.1))
        self.mu = nn.Parameter(torch.ones(channels, 1, 1))
        self.nu = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        self.omega = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        own = switch("own_gamma", own_gamma)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1)) if own else None
        for gate in (self.suppression_gate, self.recurrent_gate):
            nn.init.orthogonal_(gate.convolution.weight)
        for kernel in (self.suppression, self.facilitation):
            nn.init.orthogonal_(kernel.weight)
        initialise_gate_biases(
            self.suppression_gate.bias,
            self.recurrent_gate.bias,
            kind=gate_bias,
            steps=chrono_steps,
        )

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        """The next state.

        Args:
            drive: `Z (N, C, H, W)`, non-negative in the paper's models (squared filter responses).
            state: `H (N, C, H, W)`, non-negative from a start at zero without `state_norm`.

        Returns:
            `H' (N, C, H, W)`.
        """
        gated = state * self.suppression_gate(state)
        suppressed = self.suppression_norm(self.suppression(gated))
        inhibition = softplus((self.alpha * state + self.mu) * suppressed)
        excitation = softplus(drive - inhibition)
        update = self.recurrent_gate(excitation)
        facilitated = self.facilitation_norm(self.facilitation(excitation))
        if self.gamma is None:
            linear = self.nu * (facilitated + excitation)
        else:
            linear = self.nu * excitation + self.gamma * facilitated
        candidate = softplus(linear + self.omega * (facilitated * excitation))
        following = (1 - update) * state + update * candidate
        if self.last_norm is not None:
            following = self.last_norm(drive + following)
        return softplus(following) if self.rectify_state else following
