"""The hGRU of the recurrent mask head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbp_d2.core.cells.base import CELLS
from crbp_d2.core.cells.gates import GlobalLocalGate, PointwiseGate, initialise_gate_biases
from crbp_d2.core.cells.norms import GROUPS, build_norm, settling_norm
from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.ops.activations import activation
from crbp_d2.core.options import integer, odd, switch

GATES = ("gala", "pointwise")


@CELLS.register("mask_hgru")
class MaskHGRUCell(nn.Module):
    """Group-normalised hGRU that takes the place of Mask R-CNN's four convolutions.

    Supplement of Linsley et al. 2020, sections 3.1 and 3.3, with the shapes of the released model
    (`Z` drive, `H` state, `*` convolution, `.` elementwise, phi the activation):

        G^S = gate(H)                                   suppression gate
        C^S = norm(W^S * (H . G^S))                     suppression
        S   = phi(Z - C^S . (alpha H + mu))
        G^F = sigmoid(U^F * S + b)                      recurrent gate
        C^F = norm(W^F * S)                             facilitation
        H'  = (1 - G^F) . H + G^F . phi(C^F)

    Args:
        channels: `C` of drive and state.
        kernel_size: of `W^S` and `W^F`, odd.
        gate: `gala` (`GlobalLocalGate`, the paper) or `pointwise` (the plain hGRU's).
        gate_kernel_size: of the local convolutions of `gala`, odd; in the released code it is that
            of `W^S` and `W^F`.
        gate_uniform_bias: start the first bias of `gala` uniform, as released; see
            `GlobalLocalGate`.
        norm: see `build_norm`.
        norm_scale: initial scale of the norms (released: 0.1).
        norm_groups: of `GN`; or fewer, the greatest common divisor with the channels.
        activation_name: `phi` (paper: softplus).
        gate_bias: `chrono` (the paper's intent), `released` or `zero`; see
            `initialise_gate_biases`.
        chrono_steps: `T` of the chrono initialisation.
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
        kernel_size: int = 3,
        gate: str = "gala",
        gate_kernel_size: int = 3,
        gate_uniform_bias: bool = False,
        norm: str = "GN",
        norm_scale: float = 0.1,
        norm_groups: int = GROUPS,
        activation_name: str = "softplus",
        gate_bias: str = "chrono",
        chrono_steps: int = 20,
        state_norm: int = 0,
        state_norm_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ConfigurationError(
                f"unknown gate {gate!r}; choose from {choices(GATES)}", option="gate"
            )
        size, channels = odd("kernel_size", kernel_size), integer("channels", channels, 1)
        self.activation = activation(activation_name)
        gate_size = odd("gate_kernel_size", gate_kernel_size)
        uniform_bias = switch("gate_uniform_bias", gate_uniform_bias)
        groups = integer("norm_groups", norm_groups, 1)
        self.suppression_gate: GlobalLocalGate | PointwiseGate = (
            GlobalLocalGate(
                channels=channels,
                activation_name=activation_name,
                kernel_size=gate_size,
                uniform_bias=uniform_bias,
            )
            if gate == "gala"
            else PointwiseGate(channels=channels)
        )
        self.suppression = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
        self.suppression_norm = build_norm(norm, channels, scale=norm_scale, groups=groups)
        self.facilitation = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
        self.facilitation_norm = build_norm(norm, channels, scale=norm_scale, groups=groups)
        self.recurrent_gate = PointwiseGate(channels=channels)
        self.last_norm = settling_norm(state_norm, channels, scale=state_norm_scale)
        self.alpha = nn.Parameter(torch.full((channels, 1, 1), 0.1))
        self.mu = nn.Parameter(torch.ones(channels, 1, 1))
        for kernel in (
            self.suppression,
            self.facilitation,
            self.recurrent_gate.convolution,
        ):
            nn.init.kaiming_normal_(kernel.weight)
        initialise_gate_biases(
            self.suppression_gate.bias,
            self.recurrent_gate.bias,
            kind=gate_bias,
            steps=chrono_steps,
        )

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        """The next state.

        Args:
            drive: `Z (N, C, H, W)`, RoI features.
            state: `H (N, C, H, W)`; starts at zero; without `state_norm` it stays
                non-negative with softplus.

        Returns:
            `H' (N, C, H, W)`.
        """
        gated = state * self.suppression_gate(state)
        suppressed = self.suppression_norm(self.suppression(gated))
        excitation = self.activation(drive - suppressed * (self.alpha * state + self.mu))
        update = self.recurrent_gate(excitation)
        candidate = self.activation(self.facilitation_norm(self.facilitation(excitation)))
        following = (1 - update) * state + update * candidate
        return following if self.last_norm is None else self.last_norm(drive + following)
